// Which calls are points where a process can be stopped and moved: those of our own convention.
#pragma once
#include "llvm/IR/InstrTypes.h"
#include "llvm/IR/Module.h"
#include <vector>

namespace unify {

// Functions that code generation itself calls, with C's convention: they are leaves, nothing stops in them.
bool isLeafName(llvm::StringRef Name);

// A call after which all state of the caller is in its frame.
bool isStop(const llvm::Instruction &I);

// The same, before calls have a convention.
bool mayStop(const llvm::Instruction &I);

// The calls of `F` that are stops, in order.
std::vector<llvm::CallInst *> stopsOf(llvm::Function &F);

// Split the block after each stop, and put a marker behind it: a number of its own, and that of the function's frame;
// polls get theirs, too. Returns the next free number.
unsigned markStops(llvm::Function &F, unsigned Number, unsigned Frame);

}  // namespace unify
