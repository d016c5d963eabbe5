// The image is an ordinary constant; the linker script names it in a program header of type PT_TLS, from which the libc
// makes each thread's copy. As on aarch64 the copy begins 16 bytes behind the thread pointer, or at the next multiple of
// its alignment, on all ISAs.
#include "ThreadLocals.h"

#include "llvm/IR/Constants.h"
#include "llvm/IR/IRBuilder.h"
#include "llvm/IR/Instructions.h"
#include "llvm/IR/IntrinsicInst.h"
#include "llvm/IR/ReplaceConstant.h"
#include <map>

using namespace llvm;

namespace unify {

static constexpr uint64_t BehindPointer = 16;
static constexpr char Image[] = "unified.tls";

namespace {

struct Layout {
  std::map<GlobalVariable *, uint64_t> Offsets;
  std::vector<Constant *> Parts;
  uint64_t Size = 0;
  Align Largest{1};

  void add(GlobalVariable &G, const DataLayout &DL) {
    Align Own = std::max(DL.getABITypeAlign(G.getValueType()), G.getAlign().valueOrOne());
    uint64_t Offset = alignTo(Size, Own);
    if (Offset != Size)
      Parts.push_back(ConstantAggregateZero::get(ArrayType::get(Type::getInt8Ty(G.getContext()), Offset - Size)));
    Parts.push_back(G.getInitializer());
    Offsets[&G] = Offset;
    Size = Offset + DL.getTypeAllocSize(G.getValueType());
    Largest = std::max(Largest, Own);
  }
};

}  // namespace

static Instruction *placeFor(Use &U) {
  auto *User = cast<Instruction>(U.getUser());
  auto *Phi = dyn_cast<PHINode>(User);
  return Phi ? Phi->getIncomingBlock(U)->getTerminator() : User;
}

static void replaceUses(GlobalVariable &G, uint64_t Distance) {
  while (!G.use_empty()) {
    Use &U = *G.use_begin();
    IRBuilder<> Builder(placeFor(U));
    Value *Thread = Builder.CreateIntrinsic(Intrinsic::thread_pointer, {}, {});
    Value *Address = Builder.CreateConstGEP1_64(Builder.getInt8Ty(), Thread, Distance);
    auto *Call = dyn_cast<IntrinsicInst>(U.getUser());
    if (Call && Call->getIntrinsicID() == Intrinsic::threadlocal_address) {
      Call->replaceAllUsesWith(Address);
      Call->eraseFromParent();
    } else {
      U.set(Address);
    }
  }
}

void gatherThreadLocals(Module &M) {
  Layout All;
  std::vector<GlobalVariable *> Variables;
  std::vector<Constant *> AsConstants;
  for (GlobalVariable &G : M.globals())
    if (G.isThreadLocal() && !G.isDeclaration()) {
      All.add(G, M.getDataLayout());
      Variables.push_back(&G);
      AsConstants.push_back(&G);
    }
  if (Variables.empty())
    return;
  auto *Value = ConstantStruct::getAnon(M.getContext(), All.Parts, /*Packed=*/true);
  auto *Whole = new GlobalVariable(M, Value->getType(), /*isConstant=*/true, GlobalValue::ExternalLinkage, Value, Image);
  Whole->setAlignment(All.Largest);
  convertUsersOfConstantsToInstructions(AsConstants);
  uint64_t Begin = alignTo(BehindPointer, All.Largest);
  for (GlobalVariable *G : Variables) {
    replaceUses(*G, Begin + All.Offsets[G]);
    G->eraseFromParent();
  }
}

}  // namespace unify
