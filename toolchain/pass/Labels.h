// Labels as values (`&&label`, `goto *p`), whose addresses differ by ISA, become numbers.
#pragma once

namespace llvm {
class Module;
}

namespace unify {

// Number the labels of each function whose addresses are taken, from 1, and make each computed goto a switch over them.
void numberLabels(llvm::Module &M);

}  // namespace unify
