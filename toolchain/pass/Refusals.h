// What cannot be moved, refused by name.
#pragma once
#include "llvm/IR/Module.h"

namespace unify {

// Report each construct of the module that cannot be made migratable; false if there was one.
bool checkMigratable(llvm::Module &M);

}  // namespace unify
