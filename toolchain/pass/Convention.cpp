#include "Convention.h"

#include "Calls.h"
#include "llvm/IR/IRBuilder.h"
#include "llvm/IR/InstIterator.h"
#include "llvm/IR/Instructions.h"
#include "llvm/IR/IntrinsicInst.h"

using namespace llvm;

namespace unify {

static bool isOurs(const Function &F) { return !F.isIntrinsic() && !isLeafName(F.getName()); }

// What would make a parameter special on one ISA. With `returned`, AArch64 takes it that callee-saved registers survive,
// whatever the convention; with `sret`, x86-64 returns the pointer, and keeps it across calls for that.
static constexpr Attribute::AttrKind Special[] = {Attribute::Returned, Attribute::StructRet, Attribute::InReg,
                                                  Attribute::Nest};

// What would let code generation drop a call, and keep its marker.
static constexpr Attribute::AttrKind Droppable[] = {Attribute::Memory, Attribute::WillReturn};

static void setAttributes(Function &F) {
  F.setCallingConv(CallingConv::PreserveNone);
  F.addFnAttr("frame-pointer", "all");
  F.addFnAttr(Attribute::NoRedZone);
  F.addFnAttr(Attribute::NoUnwind);
  F.addFnAttr(Attribute::NoBuiltin);
  F.removeFnAttr(Attribute::UWTable);
  F.removeFnAttr(Attribute::AllocSize);
  F.removeFnAttr(Attribute::OptimizeNone);  // of -O0: another code generator, whose programs crash on AArch64
  for (Attribute::AttrKind Kind : Droppable)
    F.removeFnAttr(Kind);
  for (Argument &A : F.args())
    for (Attribute::AttrKind Kind : Special)
      A.removeAttr(Kind);
}

static void setAttributes(CallInst &Call) {
  Call.setCallingConv(CallingConv::PreserveNone);
  Call.setTailCallKind(CallInst::TCK_NoTail);
  Call.addFnAttr(Attribute::NoBuiltin);
  for (Attribute::AttrKind Kind : Droppable)
    Call.removeFnAttr(Kind);
  for (unsigned Index = 0; Index < Call.arg_size(); ++Index)
    for (Attribute::AttrKind Kind : Special)
      Call.removeParamAttr(Index, Kind);
}

static void forgetTarget(Function &F) {
  for (const char *Name : {"target-cpu", "target-features", "tune-cpu"})
    F.removeFnAttr(Name);
}

// A leaf whose address is taken is called by pointer like everything else: by a function of our convention.
static void wrapIfTaken(Function &Leaf) {
  auto IsCallee = [](const Use &U) {
    auto *Call = dyn_cast<CallInst>(U.getUser());
    return Call && Call->isCallee(&U);
  };
  if (all_of(Leaf.uses(), IsCallee))
    return;
  auto *Wrapper = Function::Create(Leaf.getFunctionType(), GlobalValue::InternalLinkage, "unified." + Leaf.getName(),
                                   Leaf.getParent());
  Leaf.replaceUsesWithIf(Wrapper, [&](const Use &U) { return !IsCallee(U); });
  IRBuilder<> Body(BasicBlock::Create(Leaf.getContext(), "", Wrapper));
  std::vector<Value *> Arguments;
  for (Argument &A : Wrapper->args())
    Arguments.push_back(&A);
  auto *Call = Body.CreateCall(&Leaf, Arguments);
  Call->getType()->isVoidTy() ? Body.CreateRetVoid() : Body.CreateRet(Call);
}

void applyConvention(Module &M) {
  std::vector<Function *> Leaves;
  for (Function &F : M)
    if (isLeafName(F.getName()))
      Leaves.push_back(&F);
  for (Function *Leaf : Leaves)
    wrapIfTaken(*Leaf);
  for (Function &F : M) {
    forgetTarget(F);
    if (isOurs(F))
      setAttributes(F);
  }
  for (Function &F : M)
    for (Instruction &I : instructions(F)) {
      auto *Call = dyn_cast<CallInst>(&I);
      if (!Call || Call->isInlineAsm())
        continue;
      const auto *Callee = dyn_cast<Function>(Call->getCalledOperand()->stripPointerCastsAndAliases());
      if (!Callee || isOurs(*Callee))
        setAttributes(*Call);
    }
}

}  // namespace unify
