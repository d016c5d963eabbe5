// A frame with one layout for all ISAs: a single object directly below the frame pointer.
#pragma once
#include "llvm/Analysis/BlockFrequencyInfo.h"
#include "llvm/IR/Function.h"

namespace unify {

// Give `F` such a frame, with a home for each value that is live across a stop. Its stops must have been marked, so
// that each ends its block.
void unifyFrame(llvm::Function &F, unsigned Number, const llvm::BlockFrequencyInfo &Frequencies);

}  // namespace unify
