// Points where loops without calls can be stopped.
#pragma once
#include "llvm/Analysis/LoopInfo.h"
#include "llvm/Analysis/ScalarEvolution.h"
#include "llvm/IR/Function.h"
#include "llvm/IR/InstrTypes.h"
#include <vector>

namespace unify {

// Put a poll into each loop of `F` that can run for long without a stop.
void insertPolls(llvm::Function &F, const llvm::LoopInfo &Loops, llvm::ScalarEvolution &Counts);

// The polls of `F`, in order.
std::vector<llvm::CallBrInst *> pollsOf(llvm::Function &F);

}  // namespace unify
