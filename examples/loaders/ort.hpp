// The few functions of onnxruntime's C interface that the loader calls, for a machine with its library but no header.
//
// OrtApi is a table of functions that only ever grows at its end, so a place in it, once published, keeps its meaning.
// With onnxruntime_c_api.h at hand, write api->Run(...) instead of call(Run, ...), and leave this file out.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>

using Pointer = void*;
struct ApiBase { Pointer const* (*GetApi)(uint32_t version); };
extern "C" const ApiBase* OrtGetApiBase();

enum {
  GetErrorMessage = 2, CreateEnv = 3, CreateSession = 7, Run = 9, CreateSessionOptions = 10, EnableMemPattern = 16,
  DisableMemPattern = 17, EnableCpuMemArena = 18, DisableCpuMemArena = 19, SetSessionGraphOptimizationLevel = 23,
  SetIntraOpNumThreads = 24, SessionGetInputCount = 30, SessionGetOutputCount = 31, SessionGetInputTypeInfo = 33,
  SessionGetInputName = 36, SessionGetOutputName = 37, CreateTensorAsOrtValue = 48, GetTensorMutableData = 51,
  CastTypeInfoToTensorInfo = 55, GetTensorElementType = 60, GetDimensionsCount = 61, GetDimensions = 62,
  GetTensorShapeElementCount = 64, GetTensorTypeAndShape = 65, CreateMemoryInfo = 68,
  GetAllocatorWithDefaultOptions = 78, AddSessionConfigEntry = 130, CreateAndRegisterAllocator = 144,
  CreateArenaCfgV2 = 164
};

// Calls a function of the table; throws onnxruntime's message where it gives an error.
template <class... Arguments> void call(int place, Arguments... arguments) {
  static Pointer const* api = OrtGetApiBase()->GetApi(18);
  Pointer status = reinterpret_cast<Pointer (*)(Arguments...)>(api[place])(arguments...);
  if (status) throw std::runtime_error(reinterpret_cast<const char* (*)(Pointer)>(api[GetErrorMessage])(status));
}
