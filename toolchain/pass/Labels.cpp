#include "Labels.h"

#include "llvm/ADT/MapVector.h"
#include "llvm/IR/Constants.h"
#include "llvm/IR/IRBuilder.h"
#include "llvm/IR/Instructions.h"
#include "llvm/IR/Module.h"

using namespace llvm;

namespace unify {

using Numbers = MapVector<BasicBlock *, ConstantInt *>;

// 0 is no label: a pointer to one must not be null.
static Numbers numbersOf(Function &F) {
  Numbers Found;
  for (BasicBlock &Block : F)
    if (Block.hasAddressTaken())
      Found[&Block] = ConstantInt::get(Type::getInt64Ty(F.getContext()), Found.size() + 1);
  return Found;
}

// A successor may stand there several times; the switch leads to it once.
static void makeSwitch(IndirectBrInst *Goto, const Numbers &Labels) {
  BasicBlock *From = Goto->getParent();
  auto *Nowhere = BasicBlock::Create(Goto->getContext(), "nowhere", From->getParent());
  IRBuilder<>(Nowhere).CreateUnreachable();
  IRBuilder<> Builder(Goto);
  Value *Number = Builder.CreatePtrToInt(Goto->getAddress(), Builder.getInt64Ty());
  SwitchInst *Switch = Builder.CreateSwitch(Number, Nowhere, Goto->getNumDestinations());
  SmallPtrSet<BasicBlock *, 16> Seen;
  for (BasicBlock *To : successors(Goto)) {
    auto Label = Labels.find(To);
    if (Label != Labels.end() && Seen.insert(To).second)
      Switch->addCase(Label->second, To);
    else
      To->removePredecessor(From);
  }
  Goto->eraseFromParent();
}

void numberLabels(Module &M) {
  for (Function &F : M) {
    Numbers Labels = numbersOf(F);
    std::vector<IndirectBrInst *> Gotos;
    for (BasicBlock &Block : F)
      if (auto *Goto = dyn_cast<IndirectBrInst>(Block.getTerminator()))
        Gotos.push_back(Goto);
    for (IndirectBrInst *Goto : Gotos)
      makeSwitch(Goto, Labels);
    for (auto [Block, Number] : Labels)
      if (BlockAddress *Address = BlockAddress::lookup(Block))
        Address->replaceAllUsesWith(ConstantExpr::getIntToPtr(Number, Address->getType()));
  }
}

}  // namespace unify
