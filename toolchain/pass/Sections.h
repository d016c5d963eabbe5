// A section for each function and variable, so that the link can give each its own address.
#pragma once
#include "llvm/IR/Module.h"

namespace unify {

void separate(llvm::Module &M);

}  // namespace unify
