// What is live across the stops of a function.
#pragma once
#include "llvm/ADT/BitVector.h"
#include "llvm/ADT/DenseMap.h"
#include "llvm/IR/Function.h"
#include <vector>

namespace unify {

class Liveness {
public:
  explicit Liveness(llvm::Function &F);

  // Values that are live when `Block` begins, its own phis excluded.
  std::vector<llvm::Value *> liveIn(const llvm::BasicBlock *Block) const;

  bool isLiveIn(const llvm::Value *V, const llvm::BasicBlock *Block) const;

private:
  std::vector<llvm::Value *> Values;
  llvm::DenseMap<const llvm::Value *, unsigned> Numbers;
  llvm::DenseMap<const llvm::BasicBlock *, llvm::BitVector> In;

  void number(llvm::Value *V);
  bool update(llvm::BasicBlock &Block);
};

}  // namespace unify
