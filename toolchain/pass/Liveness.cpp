#include "Liveness.h"

#include "llvm/ADT/PostOrderIterator.h"
#include "llvm/IR/CFG.h"
#include "llvm/IR/InstIterator.h"
#include "llvm/IR/Instructions.h"

using namespace llvm;

namespace unify {

void Liveness::number(Value *V) {
  Numbers[V] = Values.size();
  Values.push_back(V);
}

Liveness::Liveness(Function &F) {
  for (Argument &A : F.args())
    number(&A);
  for (Instruction &I : instructions(F))
    if (!I.getType()->isVoidTy() && !isa<AllocaInst>(I))
      number(&I);
  for (BasicBlock &Block : F)
    In[&Block] = BitVector(Values.size());
  std::vector<BasicBlock *> Order(po_begin(&F), po_end(&F));
  for (bool Changed = true; Changed;) {
    Changed = false;
    for (BasicBlock *Block : Order)
      Changed |= update(*Block);
  }
}

// A phi's operands are live at the end of the blocks that they come from; the phi itself is defined where it stands.
bool Liveness::update(BasicBlock &Block) {
  BitVector Live(Values.size());
  for (BasicBlock *Next : successors(&Block)) {
    Live |= In[Next];
    for (PHINode &Phi : Next->phis()) {
      auto Found = Numbers.find(Phi.getIncomingValueForBlock(&Block));
      if (Found != Numbers.end())
        Live.set(Found->second);
    }
  }
  for (Instruction &I : reverse(Block)) {
    auto Defined = Numbers.find(&I);
    if (Defined != Numbers.end())
      Live.reset(Defined->second);
    if (isa<PHINode>(I))
      continue;
    for (Value *Operand : I.operands()) {
      auto Used = Numbers.find(Operand);
      if (Used != Numbers.end())
        Live.set(Used->second);
    }
  }
  if (Live == In[&Block])
    return false;
  In[&Block] = Live;
  return true;
}

std::vector<Value *> Liveness::liveIn(const BasicBlock *Block) const {
  std::vector<Value *> Found;
  auto Bits = In.find(Block);
  if (Bits != In.end())
    for (unsigned Bit : Bits->second.set_bits())
      Found.push_back(Values[Bit]);
  return Found;
}

bool Liveness::isLiveIn(const Value *V, const BasicBlock *Block) const {
  return In.find(Block)->second.test(Numbers.find(V)->second);
}

}  // namespace unify
