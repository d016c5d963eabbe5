// Arrays of variable length, alloca, and local variables of large alignment.
#pragma once
#include "llvm/IR/Module.h"

namespace unify {

// Move them to the thread's side stack, which a frame of fixed layout cannot hold.
void moveToSideStack(llvm::Module &M);

}  // namespace unify
