// The end of what is used of the side stack stands 8 bytes behind the thread pointer. A function that needs it notes
// the end when it begins, and puts it back when it returns; longjmp does the same with what setjmp has noted.
#include "SideStack.h"

#include "llvm/IR/IRBuilder.h"
#include "llvm/IR/InstIterator.h"
#include "llvm/IR/IntrinsicInst.h"

using namespace llvm;

namespace unify {

static constexpr uint64_t LargestInFrame = 16, PlaceOfEnd = 8;
static constexpr char Mark[] = "__unified_side_mark";

static bool isMoved(const AllocaInst &A) { return !A.isStaticAlloca() || A.getAlign() > Align(LargestInFrame); }

static Value *placeOfEnd(IRBuilder<> &Builder) {
  Value *Thread = Builder.CreateIntrinsic(Intrinsic::thread_pointer, {}, {});
  return Builder.CreateConstGEP1_64(Builder.getInt8Ty(), Thread, PlaceOfEnd);
}

static void replace(Instruction &Old, Value *New) {
  Old.replaceAllUsesWith(New);
  Old.eraseFromParent();
}

static void moveOne(AllocaInst &A, const DataLayout &DL) {
  IRBuilder<> Builder(&A);
  Value *Place = placeOfEnd(Builder);
  Type *Long = Builder.getInt64Ty();
  Value *Count = Builder.CreateZExtOrTrunc(A.getArraySize(), Long);
  Value *Size = Builder.CreateMul(Count, Builder.getInt64(DL.getTypeAllocSize(A.getAllocatedType())));
  Value *Begin = Builder.CreateSub(Builder.CreateLoad(Long, Place), Size);
  uint64_t Alignment = std::max<uint64_t>(A.getAlign().value(), LargestInFrame);
  Begin = Builder.CreateAnd(Begin, Builder.getInt64(-Alignment));
  Builder.CreateStore(Begin, Place);
  replace(A, Builder.CreateIntToPtr(Begin, A.getType()));
}

static void restoreAtReturns(Function &F, Value *End) {
  for (BasicBlock &Block : F)
    if (auto *Return = dyn_cast<ReturnInst>(Block.getTerminator())) {
      IRBuilder<> Builder(Return);
      Builder.CreateStore(End, placeOfEnd(Builder));
    }
}

// Objects of a scope: how far the stack was filled when it began, and back to that.
static void keepScopes(Function &F) {
  for (Instruction &I : make_early_inc_range(instructions(F))) {
    auto *Call = dyn_cast<IntrinsicInst>(&I);
    if (!Call)
      continue;
    IRBuilder<> Builder(Call);
    if (Call->getIntrinsicID() == Intrinsic::stacksave) {
      replace(*Call, Builder.CreateLoad(Builder.getPtrTy(), placeOfEnd(Builder)));
    } else if (Call->getIntrinsicID() == Intrinsic::stackrestore) {
      Builder.CreateStore(Call->getArgOperand(0), placeOfEnd(Builder));
      Call->eraseFromParent();
    }
  }
}

// What stays in the frame is put before everything else: it must be in the block that the function begins with, and that
// will end with the first call.
static Instruction *firstBehindVariables(Function &F) {
  BasicBlock &Entry = F.getEntryBlock();
  Instruction *First = &Entry.front();
  std::vector<AllocaInst *> Kept;
  for (Instruction &I : Entry)
    if (auto *A = dyn_cast<AllocaInst>(&I))
      if (!isMoved(*A))
        Kept.push_back(A);
  for (AllocaInst *A : Kept) {
    if (A == First)
      First = First->getNextNode();
    else
      A->moveBefore(First);
  }
  return First;
}

void moveToSideStack(Module &M) {
  for (Function &F : M) {
    std::vector<AllocaInst *> Moved;
    for (Instruction &I : instructions(F))
      if (auto *A = dyn_cast<AllocaInst>(&I))
        if (isMoved(*A))
          Moved.push_back(A);
    if (Moved.empty())
      continue;
    for (Instruction &I : make_early_inc_range(instructions(F)))
      if (I.isLifetimeStartOrEnd())
        I.eraseFromParent();
    IRBuilder<> Start(firstBehindVariables(F));
    Value *End = Start.CreateCall(M.getOrInsertFunction(Mark, Start.getPtrTy()));
    for (AllocaInst *A : Moved)
      moveOne(*A, M.getDataLayout());
    restoreAtReturns(F, End);
    keepScopes(F);
  }
}

}  // namespace unify
