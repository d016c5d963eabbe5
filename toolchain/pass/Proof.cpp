// What is proved, for each call behind which the pass has put a marker: the call preserves no register; no register is
// live across it but those that code generation reserves (frame pointer, stack pointer); no slot that code generation
// made for itself holds anything that is read behind it. And: there is no other call of our convention. Slots are
// followed backwards through the blocks: a store of all of one ends its life, whatever else names one reads it. What is
// used between two stops of one block only needs no more. What arrives on the stack is in no frame of ours, and must not
// be.
#include "Proof.h"

#include "llvm/ADT/BitVector.h"
#include "llvm/ADT/PostOrderIterator.h"
#include "llvm/CodeGen/LivePhysRegs.h"
#include "llvm/CodeGen/MachineFrameInfo.h"
#include "llvm/CodeGen/MachineFunctionPass.h"
#include "llvm/CodeGen/MachineInstr.h"
#include "llvm/CodeGen/MachineMemOperand.h"
#include "llvm/CodeGen/MachineRegisterInfo.h"
#include "llvm/CodeGen/PseudoSourceValue.h"
#include "llvm/CodeGen/TargetRegisterInfo.h"
#include "llvm/CodeGen/TargetSubtargetInfo.h"
#include "llvm/IR/InlineAsm.h"
#include "llvm/IR/Instructions.h"
#include "llvm/Support/raw_ostream.h"
#include <map>
#include <set>

using namespace llvm;

namespace unify {

namespace {

bool Failed = false;

bool isMarker(const MachineInstr &I) {
  return I.isInlineAsm() &&
         StringRef(I.getOperand(InlineAsm::MIOp_AsmString).getSymbolName()).contains("UNIFIED-SITE");
}

class Prover {
public:
  explicit Prover(MachineFunction &F)
      : F(F), Slots(F.getFrameInfo()), Registers(F.getRegInfo()), Info(*F.getSubtarget().getRegisterInfo()) {}

  void run() {
    findStops();
    if (Stops.empty())
      return;
    checkMasks();
    checkRegisters();
    findConfined();
    checkSlots();
  }

private:
  MachineFunction &F;
  const MachineFrameInfo &Slots;
  const MachineRegisterInfo &Registers;
  const TargetRegisterInfo &Info;
  std::set<const MachineInstr *> Stops;
  BitVector Confined;

  void report(const MachineBasicBlock &Block, const Twine &What) {
    errs() << "error: " << F.getName() << ", block " << Block.getNumber() << " (" << Block.getName() << "): " << What << "\n";
    Failed = true;
  }

  const uint32_t *maskOf(const MachineInstr &Call) {
    for (const MachineOperand &Operand : Call.operands())
      if (Operand.isRegMask())
        return Operand.getRegMask();
    return nullptr;
  }

  // A register that would survive the call, other than what is reserved, and the link register, which a call writes.
  MCRegister survivor(const MachineInstr &Call) {
    const uint32_t *Mask = maskOf(Call);
    for (unsigned Register = 1; Register < Info.getNumRegs(); ++Register)
      if (Registers.isAllocatable(Register) && (!Mask || !MachineOperand::clobbersPhysReg(Mask, Register)) && !isKept(Register) &&
          !Call.definesRegister(Register, &Info))
        return Register;
    return MCRegister();
  }

  // The frame pointer and what contains or is a part of it.
  bool isKept(MCRegister Register) {
    return Registers.isReserved(Register) || Info.regsOverlap(Register, Info.getFrameRegister(F));
  }

  void findStops() {
    for (const MachineBasicBlock &Block : F) {
      const MachineInstr *Call = nullptr;
      for (const MachineInstr &I : Block) {
        if (isMarker(I)) {
          if (!Call)
            report(Block, "a site without a call");
          else
            Stops.insert(Call);
          Call = nullptr;
        } else if (I.isCall()) {
          noSite(Block, Call);
          Call = &I;
        }
      }
      noSite(Block, Call);
    }
  }

  // A call without a marker must be one of a leaf, with C's convention, which preserves some registers.
  void noSite(const MachineBasicBlock &Block, const MachineInstr *Call) {
    if (Call && !Call->isReturn() && maskOf(*Call) && !survivor(*Call))
      report(Block, "a call of our convention without a site");
  }

  void checkMasks() {
    for (const MachineInstr *Stop : Stops)
      if (MCRegister Register = survivor(*Stop))
        report(*Stop->getParent(), Twine("register ") + Info.getName(Register) + " would survive the call at a site");
  }

  void checkRegisters() {
    for (const MachineBasicBlock &Block : F) {
      LivePhysRegs Live(Info);
      Live.addLiveOutsNoPristines(Block);
      for (const MachineInstr &I : reverse(Block)) {
        if (Stops.count(&I))
          checkAcross(I, Live);
        Live.stepBackward(I);
      }
    }
  }

  void checkAcross(const MachineInstr &Stop, const LivePhysRegs &Live) {
    for (MCRegister Register : Live)
      if (!isKept(Register) && !Stop.definesRegister(Register, &Info) && !resultContains(Stop, Register)) {
        report(*Stop.getParent(), Twine("register ") + Info.getName(Register) + " is live across a site");
        return;
      }
  }

  bool resultContains(const MachineInstr &Stop, MCRegister Register) {
    return any_of(Stop.all_defs(), [&](const MachineOperand &Result) {
      return Result.getReg().isPhysical() && Info.isSubRegisterEq(Result.getReg().asMCReg(), Register);
    });
  }

  struct Access {
    int Slot;
    bool Reads;
  };

  // What an instruction does to the objects of the frame that it names: unless it only stores all of one, it reads it.
  std::vector<Access> accesses(const MachineInstr &I) {
    std::vector<Access> Found;
    if (I.isDebugInstr() || I.getOpcode() == TargetOpcode::STACKMAP)
      return Found;
    for (const MachineOperand &Operand : I.operands())
      if (Operand.isFI())
        Found.push_back({Operand.getIndex(), !storesAllOf(I, Operand.getIndex())});
    return Found;
  }

  bool storesAllOf(const MachineInstr &I, int Slot) {
    if (!I.mayStore() || I.mayLoad() || Slot < 0)
      return false;
    return any_of(I.memoperands(), [&](const MachineMemOperand *Memory) {
      const auto *Place = dyn_cast_or_null<FixedStackPseudoSourceValue>(Memory->getPseudoValue());
      return Place && Place->getFrameIndex() == Slot && Memory->isStore() && !Memory->getOffset() &&
             Memory->getSize().hasValue() && Memory->getSize().getValue() >= uint64_t(Slots.getObjectSize(Slot));
    });
  }

  void checkSlots() {
    if (!Slots.getObjectIndexEnd())
      return;
    unsigned Count = Slots.getObjectIndexEnd();
    std::map<const MachineBasicBlock *, BitVector> In;
    for (const MachineBasicBlock &Block : F)
      In[&Block] = BitVector(Count);
    std::vector<MachineBasicBlock *> Order(po_begin(&F), po_end(&F));
    for (bool Changed = true; Changed;) {
      Changed = false;
      for (MachineBasicBlock *Block : Order) {
        BitVector Live = liveSlots(*Block, In, /*Report=*/false);
        Changed |= Live != In[Block];
        In[Block] = Live;
      }
    }
    for (MachineBasicBlock *Block : Order)
      liveSlots(*Block, In, /*Report=*/true);
  }

  BitVector liveSlots(MachineBasicBlock &Block, std::map<const MachineBasicBlock *, BitVector> &In, bool Report) {
    BitVector Live(Slots.getObjectIndexEnd());
    for (const MachineBasicBlock *Next : Block.successors())
      Live |= In[Next];
    for (const MachineInstr &I : reverse(Block)) {
      if (Report && Stops.count(&I) && Live.any())
        report(Block, "a slot of code generation's own is live across a site");
      for (const Access &One : accesses(I))
        if (One.Slot >= 0 && !Confined.test(One.Slot))
          One.Reads ? Live.set(One.Slot) : Live.reset(One.Slot);
    }
    return Live;
  }

  bool isUnifiedFrame(int Slot) {
    const AllocaInst *Variable = Slots.getObjectAllocation(Slot);
    return Variable && Variable->getName() == "unified.frame";
  }

  // Our own frame, and objects that are used between two stops of one block only.
  void findConfined() {
    Confined = BitVector(Slots.getObjectIndexEnd(), true);
    std::map<int, std::pair<const MachineBasicBlock *, unsigned>> Places;
    for (const MachineBasicBlock &Block : F) {
      unsigned Behind = 0;
      for (const MachineInstr &I : Block) {
        for (const Access &One : accesses(I)) {
          if (One.Slot < 0)
            report(Block, "an argument on the stack");
          else if (auto [Place, New] = Places.try_emplace(One.Slot, &Block, Behind);
                   !New && Place->second != std::make_pair(&Block, Behind) && !isUnifiedFrame(One.Slot))
            Confined.reset(One.Slot);
        }
        Behind += Stops.count(&I);
      }
    }
  }
};

class Proof : public MachineFunctionPass {
public:
  static char ID;
  Proof() : MachineFunctionPass(ID) {}
  StringRef getPassName() const override { return "Proof that no state is beside the frame"; }
  void getAnalysisUsage(AnalysisUsage &Usage) const override {
    Usage.setPreservesAll();
    MachineFunctionPass::getAnalysisUsage(Usage);
  }
  bool runOnMachineFunction(MachineFunction &F) override {
    Prover(F).run();
    return false;
  }
};

char Proof::ID = 0;

}  // namespace

Pass *createProof() { return new Proof(); }

bool proofFailed() { return Failed; }

}  // namespace unify
