// Entry of the plugin: `unify` makes one program of a module for all ISAs; `pad-frames` makes frames longer where the
// code of one ISA needs more room than that of another (--frame-pads: a file of lines "FUNCTION BYTES").
#include "Calls.h"
#include "Convention.h"
#include "Frame.h"
#include "Labels.h"
#include "Polls.h"
#include "Refusals.h"
#include "Sections.h"
#include "Signatures.h"
#include "llvm/IR/Verifier.h"
#include "llvm/Passes/PassBuilder.h"
#include "llvm/Passes/PassPlugin.h"
#include "llvm/Support/CommandLine.h"
#include "llvm/Support/LineIterator.h"
#include "llvm/Support/MemoryBuffer.h"

using namespace llvm;

static cl::opt<std::string> FramePads("frame-pads", cl::desc("Bytes by which frames are padded"));

namespace {

struct UnifyPass : PassInfoMixin<UnifyPass> {
  PreservedAnalyses run(Module &M, ModuleAnalysisManager &Analyses) {
    if (!unify::checkMigratable(M))
      report_fatal_error("not migratable", /*gen_crash_diag=*/false);
    unify::numberLabels(M);
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

struct PadFramesPass : PassInfoMixin<PadFramesPass> {
  PreservedAnalyses run(Module &M, ModuleAnalysisManager &) {
    auto File = MemoryBuffer::getFile(FramePads);
    if (!File)
      report_fatal_error(Twine(FramePads) + ": " + File.getError().message(), false);
    for (line_iterator Line(**File); !Line.is_at_end(); ++Line) {
      auto [Name, Bytes] = Line->split(' ');
      if (Function *F = M.getFunction(Name))
        unify::padFrame(*F, std::stoull(Bytes.str()));
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
                  else if (Name == "pad-frames")
                    Manager.addPass(PadFramesPass());
                  else
                    return false;
                  return true;
                });
          }};
}
