// Entry of the plugin: `unify` makes one program of a module for all ISAs; `lower-dynamic` comes before, and before what
// is not needed is dropped: it calls a function of the libc.
#include "Calls.h"
#include "Convention.h"
#include "Frame.h"
#include "Labels.h"
#include "Polls.h"
#include "Refusals.h"
#include "Sections.h"
#include "SideStack.h"
#include "Signatures.h"
#include "ThreadLocals.h"
#include "llvm/IR/Verifier.h"
#include "llvm/Passes/PassBuilder.h"
#include "llvm/Passes/PassPlugin.h"
#include "llvm/Transforms/Scalar/LoopPassManager.h"
#include "llvm/Transforms/Scalar/LoopStrengthReduce.h"

using namespace llvm;

namespace {

struct LowerDynamicPass : PassInfoMixin<LowerDynamicPass> {
  PreservedAnalyses run(Module &M, ModuleAnalysisManager &) {
    unify::moveToSideStack(M);
    return PreservedAnalyses::none();
  }
};

// Strength reduction where nothing stops: what it keeps for the next turn needs no home there. Code generation itself
// must not do it, for it would keep that in registers across calls.
struct ReduceQuietLoopsPass : PassInfoMixin<ReduceQuietLoopsPass> {
  PreservedAnalyses run(Loop &L, LoopAnalysisManager &Analyses, LoopStandardAnalysisResults &Results, LPMUpdater &Updater) {
    auto MayStop = [](const BasicBlock *Block) { return any_of(*Block, unify::mayStop); };
    if (any_of(L.blocks(), MayStop))
      return PreservedAnalyses::all();
    return LoopStrengthReducePass().run(L, Analyses, Results, Updater);
  }
};

struct UnifyPass : PassInfoMixin<UnifyPass> {
  PreservedAnalyses run(Module &M, ModuleAnalysisManager &Analyses) {
    if (!unify::checkMigratable(M))
      report_fatal_error("not migratable", /*gen_crash_diag=*/false);
    unify::numberLabels(M);
    unify::gatherThreadLocals(M);
    unify::simplifySignatures(M);
    unify::separate(M);
    unify::applyConvention(M);
    unsigned Site = 0, Frame = 0;
    auto &Functions = Analyses.getResult<FunctionAnalysisManagerModuleProxy>(M).getManager();
    for (Function &F : M) {
      if (F.isDeclaration())
        continue;
      Functions.invalidate(F, PreservedAnalyses::none());
      unify::insertPolls(F, Functions.getResult<LoopAnalysis>(F), Functions.getResult<ScalarEvolutionAnalysis>(F));
      if (unify::stopsOf(F).empty())
        continue;
      Site = unify::markStops(F, Site, Frame);
      Functions.invalidate(F, PreservedAnalyses::none());
      unify::unifyFrame(F, Frame++, Functions.getResult<BlockFrequencyAnalysis>(F));
    }
    return PreservedAnalyses::none();
  }
};

}  // namespace

extern "C" LLVM_ATTRIBUTE_WEAK PassPluginLibraryInfo llvmGetPassPluginInfo() {
  return {LLVM_PLUGIN_API_VERSION, "unifying-pass", "1", [](PassBuilder &Builder) {
            Builder.registerPipelineParsingCallback(
                [](StringRef Name, ModulePassManager &Manager, ArrayRef<PassBuilder::PipelineElement>) {
                  if (Name == "unify")
                    Manager.addPass(UnifyPass());
                  else if (Name == "lower-dynamic")
                    Manager.addPass(LowerDynamicPass());
                  else
                    return false;
                  return true;
                });
            Builder.registerPipelineParsingCallback(
                [](StringRef Name, LoopPassManager &Manager, ArrayRef<PassBuilder::PipelineElement>) {
                  if (Name != "reduce-quiet-loops")
                    return false;
                  Manager.addPass(ReduceQuietLoopsPass());
                  return true;
                });
          }};
}
