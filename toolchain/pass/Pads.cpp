#include "Pads.h"

#include "llvm/IR/InstIterator.h"
#include "llvm/IR/Instructions.h"
#include "llvm/IR/IntrinsicInst.h"

using namespace llvm;

namespace unify {

// Variables are addressed from the object's lowest byte: room above them moves none.
static void padFrame(AllocaInst &Frame, uint64_t Bytes, uint64_t Above) {
  auto *Old = cast<ArrayType>(Frame.getAllocatedType());
  Frame.setAllocatedType(ArrayType::get(Old->getElementType(), Old->getNumElements() + Bytes + Above));
  for (User *U : Frame.users())
    if (auto *Gep = dyn_cast<GetElementPtrInst>(U)) {
      auto *Offset = cast<ConstantInt>(Gep->getOperand(1));
      Gep->setOperand(1, ConstantInt::get(Offset->getType(), Offset->getZExtValue() + Bytes));
    }
}

// The stack map of a function has the frame's number and the frame.
void padFrames(Module &M, const std::map<uint64_t, Pad> &Pads) {
  for (Function &F : M) {
    if (F.isDeclaration())
      continue;
    for (Instruction &I : instructions(F)) {
      auto *Map = dyn_cast<IntrinsicInst>(&I);
      if (!Map || Map->getIntrinsicID() != Intrinsic::experimental_stackmap)
        continue;
      auto Found = Pads.find(cast<ConstantInt>(Map->getArgOperand(0))->getZExtValue());
      if (Found != Pads.end())
        padFrame(*cast<AllocaInst>(Map->getArgOperand(2)), Found->second.Below, Found->second.Above);
    }
  }
}

}  // namespace unify
