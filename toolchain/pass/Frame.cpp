// How: every local variable and every home becomes a range of one array of bytes; its address is computed anew at each
// use, so that it is never live across a stop itself. A value has one home, for it never changes (SSA): it is stored
// once, between where it is defined and where it is needed, or before each stop which it is live across, whichever runs
// less often, and read again behind.
#include "Frame.h"

#include "Calls.h"
#include "Liveness.h"
#include "llvm/ADT/PostOrderIterator.h"
#include "llvm/IR/CFG.h"
#include "llvm/IR/Dominators.h"
#include "llvm/IR/IRBuilder.h"
#include "llvm/IR/InstIterator.h"
#include "llvm/IR/IntrinsicInst.h"
#include "llvm/Transforms/Utils/Local.h"
#include "llvm/Transforms/Utils/SSAUpdater.h"
#include <map>
#include <set>

using namespace llvm;

namespace unify {

namespace {

constexpr uint64_t FrameAlign = 16;
constexpr char FrameName[] = "unified.frame";

class FrameBuilder {
public:
  FrameBuilder(Function &F, unsigned Number, const BlockFrequencyInfo &Frequencies)
      : F(F), Number(Number), Frequencies(Frequencies), Dominators(F), DL(F.getParent()->getDataLayout()), Byte(Type::getInt8Ty(F.getContext())) {}

  void run() {
    dropLifetimes();
    sinkOffsets();
    makeAddressesAnew();
    makeFrame();
    giveHomes();
    placeVariables();
    finish();
  }

private:
  Function &F;
  unsigned Number;
  const BlockFrequencyInfo &Frequencies;
  const DominatorTree Dominators;
  const DataLayout &DL;
  Type *Byte;
  AllocaInst *Frame = nullptr;
  const Liveness *Live = nullptr;
  uint64_t Size = 0;
  std::vector<std::pair<AllocaInst *, uint64_t>> Variables;

  void dropLifetimes() {
    for (Instruction &I : make_early_inc_range(instructions(F)))
      if (I.isLifetimeStartOrEnd())
        I.eraseFromParent();
  }

  // A constant offset costs nothing where it is used: one in each block, so that its base alone needs a home.
  void sinkOffsets() {
    std::vector<GetElementPtrInst *> Offsets;
    for (BasicBlock *Block : ReversePostOrderTraversal<Function *>(&F))
      for (Instruction &I : *Block)
        if (auto *Gep = dyn_cast<GetElementPtrInst>(&I))
          if (Gep->hasAllConstantIndices() && !isa<Constant>(Gep->getPointerOperand()))
            Offsets.push_back(Gep);
    for (GetElementPtrInst *Gep : reverse(Offsets)) {
      std::map<BasicBlock *, Instruction *> Copies;
      for (Use &U : make_early_inc_range(Gep->uses())) {
        BasicBlock *Block = useBlock(U);
        if (Block == Gep->getParent())
          continue;
        Instruction *&Copy = Copies[Block];
        if (!Copy) {
          Copy = Gep->clone();
          Copy->insertBefore(&*Block->getFirstInsertionPt());
        }
        U.set(Copy);
      }
      if (Gep->use_empty())
        Gep->eraseFromParent();
    }
  }

  // Constant offsets into a variable are no values: each use has its own.
  void makeAddressesAnew() {
    std::vector<Instruction *> Offsets;
    for (Instruction &I : instructions(F))
      if (auto *Gep = dyn_cast<GetElementPtrInst>(&I))
        if (Gep->hasAllConstantIndices() && isa<AllocaInst>(Gep->stripInBoundsConstantOffsets()))
          Offsets.push_back(Gep);
    for (auto *Gep : reverse(Offsets)) {
      while (!Gep->use_empty()) {
        Use &U = *Gep->use_begin();
        Instruction *Copy = Gep->clone();
        Copy->insertBefore(placeFor(U));
        replace(U, Copy);
      }
      Gep->eraseFromParent();
    }
  }

  static Instruction *placeFor(Use &U) {
    auto *User = cast<Instruction>(U.getUser());
    if (auto *Phi = dyn_cast<PHINode>(User))
      return Phi->getIncomingBlock(U)->getTerminator();
    return User;
  }

  // A phi may name a block several times, and must then have the same value each time.
  static void replace(Use &U, Value *New) {
    auto *Phi = dyn_cast<PHINode>(U.getUser());
    if (!Phi) {
      U.set(New);
      return;
    }
    BasicBlock *Block = Phi->getIncomingBlock(U);
    for (unsigned Index = 0; Index < Phi->getNumIncomingValues(); ++Index)
      if (Phi->getIncomingBlock(Index) == Block)
        Phi->setIncomingValue(Index, New);
  }

  uint64_t reserve(uint64_t Bytes, Align Alignment) {
    // Offsets count downwards from the frame pointer, so a range ends at a multiple of its alignment.
    Size = alignTo(Size + Bytes, Alignment);
    return Size;
  }

  void makeFrame() {
    for (Instruction &I : F.getEntryBlock())
      if (auto *Variable = dyn_cast<AllocaInst>(&I)) {
        uint64_t Bytes = Variable->getAllocationSize(DL)->getFixedValue();
        Variables.emplace_back(Variable, reserve(std::max<uint64_t>(Bytes, 1), Variable->getAlign()));
      }
    IRBuilder<> Start(&F.getEntryBlock(), F.getEntryBlock().begin());
    Frame = Start.CreateAlloca(Byte, nullptr, FrameName);
    Frame->setAlignment(Align(FrameAlign));
  }

  struct Home {
    uint64_t Offset = 0;
    std::map<BasicBlock *, LoadInst *> Loads;
    std::vector<CallInst *> Stops;
  };

  // `Offset` bytes below the frame pointer; the length is not known yet, and is put in at the end.
  std::vector<std::pair<Instruction *, uint64_t>> Places;

  Value *place(uint64_t Offset, Instruction *Before) {
    auto *Gep = cast<Instruction>(
        IRBuilder<>(Before).Insert(GetElementPtrInst::Create(Byte, Frame, {ConstantInt::get(Type::getInt64Ty(F.getContext()), 0)})));
    Places.emplace_back(Gep, Offset);
    return Gep;
  }

  void giveHomes() {
    Liveness Known(F);
    Live = &Known;
    std::map<Value *, Home> Homes;
    std::vector<Value *> Order;
    for (CallInst *Stop : stopsOf(F))
      for (Value *V : Known.liveIn(Stop->getParent()->getSingleSuccessor())) {
        if (V == Stop)
          continue;
        auto [Found, New] = Homes.try_emplace(V);
        if (New) {
          Found->second.Offset = reserve(DL.getTypeStoreSize(V->getType()), homeAlign(V));
          Order.push_back(V);
        }
        Found->second.Stops.push_back(Stop);
      }
    for (Value *V : Order)
      useHome(V, Homes[V]);
  }

  Align homeAlign(Value *V) { return std::min(DL.getABITypeAlign(V->getType()), Align(FrameAlign)); }

  // Three ways to have a value behind stops. It can be read again behind each stop, as a new value that meets the old
  // one where paths join; stored once or before the stops. Or, stored once, it is read in each block that uses it and
  // that a path through a stop leads to. Taken is what runs least often.
  void useHome(Value *V, Home &H) {
    std::vector<Use *> Uses;
    for (Use &U : V->uses())
      Uses.push_back(&U);
    BasicBlock *Defining = definingBlock(V);
    std::set<BasicBlock *> Behind = blocksBehindStops(V, H), Stopping, Using;
    uint64_t AtStops = 0, AtUses = 0;
    for (const CallInst *Stop : H.Stops) {
      AtStops += frequency(Stop->getParent());
      Stopping.insert(const_cast<BasicBlock *>(Stop->getParent()));
    }
    for (Use *U : Uses)
      if (Behind.count(useBlock(*U)))
        Using.insert(useBlock(*U));
    for (BasicBlock *Block : Using)
      AtUses += frequency(Block);
    BasicBlock *ForStops = placeToStore(V, Stopping, Behind);
    std::set<BasicBlock *> All = Stopping;
    All.insert(Using.begin(), Using.end());
    BasicBlock *ForUses = placeToStore(V, All, Behind);
    uint64_t Stored = frequency(ForStops);
    if (frequency(ForUses) + AtUses <= std::min(Stored, AtStops) + AtStops)
      readAtUses(V, H, Uses, Using, ForUses);
    else
      readBehindStops(V, H, Uses, Defining, AtStops < Stored ? nullptr : ForStops);
  }

  // Of the blocks that lead to all of `Needing`, from the value's own on, the one that runs least often. Not one behind
  // a stop: the value would have to be in a register there. So a value is not stored on ways that meet no stop.
  BasicBlock *placeToStore(Value *V, const std::set<BasicBlock *> &Needing, const std::set<BasicBlock *> &Behind) {
    BasicBlock *Best = behind(V)->getParent(), *Common = nullptr;
    for (BasicBlock *Block : Needing)
      Common = Common ? Dominators.findNearestCommonDominator(Common, Block) : Block;
    if (!Dominators.dominates(Best, Common))
      return Best;
    BasicBlock *Own = Best;
    for (BasicBlock *Block = Common; Block != Own; Block = Dominators.getNode(Block)->getIDom()->getBlock())
      if (!Behind.count(Block) && frequency(Block) < frequency(Best))
        Best = Block;
    return Best;
  }

  uint64_t frequency(const BasicBlock *Block) { return Frequencies.getBlockFreq(Block).getFrequency(); }

  static BasicBlock *useBlock(const Use &U) {
    auto *User = cast<Instruction>(U.getUser());
    auto *Phi = dyn_cast<PHINode>(User);
    return Phi ? Phi->getIncomingBlock(U) : User->getParent();
  }

  // The blocks which a path from the value through a stop leads to.
  std::set<BasicBlock *> blocksBehindStops(Value *V, Home &H) {
    BasicBlock *Defining = definingBlock(V);
    std::set<BasicBlock *> Found;
    std::vector<BasicBlock *> Left;
    for (CallInst *Stop : H.Stops)
      Left.push_back(Stop->getParent()->getSingleSuccessor());
    while (!Left.empty()) {
      BasicBlock *Block = Left.back();
      Left.pop_back();
      if (Block == Defining || !Live->isLiveIn(V, Block) || !Found.insert(Block).second)
        continue;
      for (BasicBlock *Next : successors(Block))
        Left.push_back(Next);
    }
    return Found;
  }

  void storeIn(BasicBlock *Block, Value *V, Home &H) {
    Instruction *Begin = behind(V);
    if (Begin->getParent() != Block)
      Begin = &*Block->getFirstInsertionPt();
    new StoreInst(V, place(H.Offset, Begin), false, homeAlign(V), Begin);
  }

  void readAtUses(Value *V, Home &H, std::vector<Use *> &Uses, std::set<BasicBlock *> &Using, BasicBlock *StoredIn) {
    std::map<BasicBlock *, LoadInst *> Loads;
    for (BasicBlock *Block : Using) {
      Instruction *Begin = &*Block->getFirstInsertionPt();
      Loads[Block] = new LoadInst(V->getType(), place(H.Offset, Begin), "", false, homeAlign(V), Begin);
    }
    for (Use *U : Uses)
      if (auto Found = Loads.find(useBlock(*U)); Found != Loads.end())
        U->set(Found->second);
    storeIn(StoredIn, V, H);
  }

  // `StoredIn` is none: before each stop.
  void readBehindStops(Value *V, Home &H, std::vector<Use *> &Uses, BasicBlock *Defining, BasicBlock *StoredIn) {
    SSAUpdater Updater;
    Updater.Initialize(V->getType(), V->getName());
    Updater.AddAvailableValue(Defining, V);
    for (CallInst *Stop : H.Stops) {
      BasicBlock *After = Stop->getParent()->getSingleSuccessor();
      Instruction *Begin = &*After->getFirstInsertionPt();
      auto *Load = new LoadInst(V->getType(), place(H.Offset, Begin), "", false, homeAlign(V), Begin);
      H.Loads[After] = Load;
      Updater.AddAvailableValue(After, Load);
    }
    if (StoredIn)
      storeIn(StoredIn, V, H);
    else
      for (CallInst *Stop : H.Stops) {
        auto *Store = new StoreInst(V, place(H.Offset, Stop), false, homeAlign(V), Stop);
        if (Stop->getParent() != Defining)
          rewrite(Store->getOperandUse(0), Defining, H, Updater);
      }
    for (Use *U : Uses)
      rewrite(*U, Defining, H, Updater);
    for (auto &[_, Load] : H.Loads)
      if (Load->use_empty())
        Load->eraseFromParent();
  }

  void rewrite(Use &U, BasicBlock *Defining, Home &H, SSAUpdater &Updater) {
    auto *User = cast<Instruction>(U.getUser());
    if (!isa<PHINode>(User)) {
      if (User->getParent() == Defining)
        return;
      auto Found = H.Loads.find(User->getParent());
      if (Found != H.Loads.end()) {
        U.set(Found->second);
        return;
      }
    }
    Updater.RewriteUse(U);
  }

  BasicBlock *definingBlock(Value *V) {
    auto *I = dyn_cast<Instruction>(V);
    return I ? I->getParent() : &F.getEntryBlock();
  }

  Instruction *behind(Value *V) {
    auto *I = dyn_cast<Instruction>(V);
    if (!I)
      return &*F.getEntryBlock().getFirstNonPHIOrDbgOrAlloca();
    if (isa<PHINode>(I))
      return &*I->getParent()->getFirstInsertionPt();
    if (isStop(*I))
      return &*I->getParent()->getSingleSuccessor()->getFirstInsertionPt();
    return I->getNextNode();
  }

  void placeVariables() {
    for (auto &[Variable, Offset] : Variables) {
      while (!Variable->use_empty()) {
        Use &U = *Variable->use_begin();
        replace(U, place(Offset, placeFor(U)));
      }
      Variable->eraseFromParent();
    }
  }

  // Where code generation has to have made the frame: the entry, or, if that only decides whether to return at once, what
  // comes then. The way that returns at once gets a return of its own, so that it needs no frame.
  BasicBlock &beginOfFrame() {
    BasicBlock &Entry = F.getEntryBlock();
    auto *Branch = dyn_cast<BranchInst>(Entry.getTerminator());
    if (!Branch || !Branch->isConditional() || usesFrame(Entry))
      return Entry;
    for (unsigned Way : {0, 1}) {
      BasicBlock *Returning = Branch->getSuccessor(Way), *Rest = Branch->getSuccessor(1 - Way);
      if (Rest == Returning || Rest->getSinglePredecessor() != &Entry || !isa<ReturnInst>(*Returning->getFirstNonPHIOrDbg()))
        continue;
      Branch->setSuccessor(Way, returnFrom(Entry, *Returning));
      return *Rest;
    }
    return Entry;
  }

  bool usesFrame(const BasicBlock &Block) {
    return any_of(Block, [&](const Instruction &I) { return is_contained(I.operands(), Frame); });
  }

  // What `Returning` returns to who comes from `Block`.
  BasicBlock *returnFrom(BasicBlock &Block, BasicBlock &Returning) {
    auto *New = BasicBlock::Create(F.getContext(), "at.once", &F, &Returning);
    auto *Return = cast<ReturnInst>(Returning.getTerminator())->clone();
    Return->insertInto(New, New->end());
    for (Value *V : Return->operand_values())
      if (auto *Phi = dyn_cast<PHINode>(V); Phi && Phi->getParent() == &Returning)
        Return->setOperand(0, Phi->getIncomingValueForBlock(&Block));
    Returning.removePredecessor(&Block);
    return New;
  }

  void finish() {
    Size = alignTo(std::max<uint64_t>(Size, 1), FrameAlign);
    Frame->setAllocatedType(ArrayType::get(Byte, Size));
    auto *Long = Type::getInt64Ty(F.getContext());
    for (auto &[Gep, Offset] : Places)
      Gep->setOperand(1, ConstantInt::get(Long, Size - Offset));
    IRBuilder<> Start(&*beginOfFrame().getFirstNonPHIOrDbgOrAlloca());
    Start.CreateIntrinsic(Intrinsic::experimental_stackmap, {},
                          {Start.getInt64(Number), Start.getInt32(0), Frame});
  }
};

}  // namespace

void unifyFrame(Function &F, unsigned Number, const BlockFrequencyInfo &Frequencies) {
  FrameBuilder(F, Number, Frequencies).run();
}

}  // namespace unify
