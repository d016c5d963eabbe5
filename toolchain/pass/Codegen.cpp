// Generates the code of one ISA for a unified module, as llc does with the same options, and proves while it is at it
// that the code keeps no state beside the frame. It ends with an error if it does.
//
//     unified-codegen OPTIONS-OF-LLC -mtriple=TRIPLE [-frame-pads=FILE] IN -o OUT
//
// FILE has lines "NUMBER BYTES": frames that must be longer, because that of another ISA is.
#include "Pads.h"
#include "Proof.h"
#include "llvm/CodeGen/CommandFlags.h"
#include "llvm/CodeGen/MachineModuleInfo.h"
#include "llvm/CodeGen/Passes.h"
#include "llvm/CodeGen/TargetPassConfig.h"
#include "llvm/Analysis/TargetLibraryInfo.h"
#include "llvm/IR/LLVMContext.h"
#include "llvm/IR/LegacyPassManager.h"
#include "llvm/IR/Module.h"
#include "llvm/IRReader/IRReader.h"
#include "llvm/InitializePasses.h"
#include "llvm/MC/TargetRegistry.h"
#include "llvm/Support/CommandLine.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/LineIterator.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/SourceMgr.h"
#include "llvm/Support/TargetSelect.h"
#include "llvm/Support/ToolOutputFile.h"
#include "llvm/Target/TargetMachine.h"
#include <map>

using namespace llvm;

static codegen::RegisterCodeGenFlags Flags;
static cl::opt<std::string> Input(cl::Positional, cl::Required);
static cl::opt<std::string> Output("o", cl::Required);
static cl::opt<std::string> Triple_("mtriple", cl::Required);
static cl::opt<std::string> FramePads("frame-pads");

static int fail(const Twine &Why) {
  errs() << "error: " << Why << "\n";
  return 1;
}

static bool padFrames(Module &M) {
  if (FramePads.empty())
    return true;
  auto File = MemoryBuffer::getFile(FramePads);
  if (!File)
    return false;
  std::map<uint64_t, unify::Pad> Pads;
  for (line_iterator Line(**File); !Line.is_at_end(); ++Line) {
    auto [Number, Bytes] = Line->split(' ');
    auto [Below, Above] = Bytes.split(' ');
    Pads[std::stoull(Number.str())] = {std::stoull(Below.str()), std::stoull(Above.str())};
  }
  unify::padFrames(M, Pads);
  return true;
}

static std::unique_ptr<LLVMTargetMachine> machineFor(const Triple &Wanted) {
  std::string Error;
  const Target *Found = TargetRegistry::lookupTarget(Wanted.str(), Error);
  if (!Found)
    return nullptr;
  TargetOptions Options = codegen::InitTargetOptionsFromCodeGenFlags(Wanted);
  auto *Machine = Found->createTargetMachine(Wanted.str(), codegen::getCPUStr(), codegen::getFeaturesStr(), Options,
                                             codegen::getExplicitRelocModel(), codegen::getExplicitCodeModel(),
                                             CodeGenOptLevel::Default);
  return std::unique_ptr<LLVMTargetMachine>(static_cast<LLVMTargetMachine *>(Machine));
}

// As clang has it. Without, LLVM takes x86-64 to be tuned for an i586, which copies 16 bytes by two words.
static void tune(Module &M, const Triple &Wanted) {
  for (Function &F : M) {
    F.addFnAttr("target-cpu", Wanted.isX86() ? "x86-64" : "generic");
    F.addFnAttr("tune-cpu", "generic");
  }
}

static bool generate(Module &M, LLVMTargetMachine &Machine, raw_pwrite_stream &Out) {
  legacy::PassManager Passes;
  Passes.add(new TargetLibraryInfoWrapperPass(TargetLibraryInfoImpl(Triple(M.getTargetTriple()))));
  auto *Config = Machine.createPassConfig(Passes);
  Passes.add(Config);
  auto *Functions = new MachineModuleInfoWrapperPass(&Machine);
  Passes.add(Functions);
  Config->insertPass(&VirtRegRewriterID, unify::createProof());
  if (Config->addISelPasses())
    return false;
  Config->addMachinePasses();
  Config->setInitialized();
  if (Machine.addAsmPrinter(Passes, Out, nullptr, codegen::getFileType(), Functions->getMMI().getContext()))
    return false;
  Passes.add(createFreeMachineFunctionPass());
  Passes.run(M);
  return !unify::proofFailed();
}

int main(int Count, char **Words) {
  InitializeAllTargets();
  InitializeAllTargetMCs();
  InitializeAllAsmPrinters();
  InitializeAllAsmParsers();
  PassRegistry &Registry = *PassRegistry::getPassRegistry();
  initializeCore(Registry);
  initializeCodeGen(Registry);
  initializeScalarOpts(Registry);
  initializeTransformUtils(Registry);
  initializeAnalysis(Registry);
  initializeTarget(Registry);
  cl::ParseCommandLineOptions(Count, Words, "code generation for one ISA of a unified module\n");

  LLVMContext Context;
  SMDiagnostic Problem;
  std::unique_ptr<Module> M = parseIRFile(Input, Problem, Context);
  if (!M)
    return fail(Input + ": " + Problem.getMessage());
  Triple Wanted(Triple::normalize(Triple_));
  auto Machine = machineFor(Wanted);
  if (!Machine)
    return fail("there is no code generation for " + Wanted.str());
  M->setTargetTriple(Wanted.str());
  M->setDataLayout(Machine->createDataLayout());
  tune(*M, Wanted);
  if (!padFrames(*M))
    return fail(FramePads + ": cannot be read");
  std::error_code Error;
  ToolOutputFile Out(Output, Error, sys::fs::OF_Text);
  if (Error)
    return fail(Output + ": " + Error.message());
  if (!generate(*M, *Machine, Out.os()))
    return fail(Wanted.str() + ": state beside the frame");
  Out.keep();
  return 0;
}
