// Runs a model that memoptc wrote by its session contract, and prints what comes out.
//
//     ln -s PATH/libonnxruntime.so.1.* libonnxruntime.so.1
//     g++ -std=c++17 load.cpp libonnxruntime.so.1 -Wl,-rpath,. -o load
//     ./load MODEL.onnx [INPUT=FILE.bin ...]
//
// PATH: of any onnxruntime, such as the folder onnxruntime/capi of Python's. Inputs are raw bytes or zeros, symbolic
// extents are 1, outputs are printed where they are float32 or int64.
#include <cstdio>
#include "session.hpp"

const size_t BYTES[] = {0, 4, 1, 1, 2, 2, 4, 8, 0, 1, 2, 8, 4, 8};  // of an element, by ONNX's type

struct Shape {
  int type;
  std::vector<int64_t> dims;
  explicit Shape(Pointer info) {
    size_t rank;
    call(GetTensorElementType, info, &type);
    call(GetDimensionsCount, info, &rank);
    dims.resize(rank);
    call(GetDimensions, info, dims.data(), rank);
  }
};

int main(int count, char** words) try {
  std::map<std::string, std::string> given;
  for (int i = 2; i < count; i++) {
    const std::string word = words[i], name = word.substr(0, word.find('='));
    given[name] = read(word.substr(name.size() + 1));
  }
  Pointer session = make_session(words[1]), heap, info, data;
  size_t inputs, outputs, size;
  call(GetAllocatorWithDefaultOptions, &heap);
  call(SessionGetInputCount, session, &inputs);
  call(SessionGetOutputCount, session, &outputs);
  std::vector<char*> names(inputs), wanted(outputs);
  std::vector<Pointer> feed(inputs), results(outputs);
  for (size_t i = 0; i < inputs; i++) {
    call(SessionGetInputName, session, i, heap, &names[i]);
    call(SessionGetInputTypeInfo, session, i, &data), call(CastTypeInfoToTensorInfo, data, &info);
    Shape shape(info);
    for (auto& extent : shape.dims) extent = extent < 0 ? 1 : extent;
    call(CreateTensorAsOrtValue, heap, shape.dims.data(), shape.dims.size(), shape.type, &feed[i]);
    call(GetTensorTypeAndShape, feed[i], &info), call(GetTensorShapeElementCount, info, &size);
    call(GetTensorMutableData, feed[i], &data);
    given[names[i]].resize(size * BYTES[shape.type]);
    given[names[i]].copy(static_cast<char*>(data), std::string::npos);
  }
  for (size_t i = 0; i < outputs; i++) call(SessionGetOutputName, session, i, heap, &wanted[i]);
  call(Run, session, Pointer(), names.data(), feed.data(), inputs, wanted.data(), outputs, results.data());
  for (size_t i = 0; i < outputs; i++) {
    call(GetTensorTypeAndShape, results[i], &info), call(GetTensorShapeElementCount, info, &size);
    call(GetTensorMutableData, results[i], &data);
    printf("%s:", wanted[i]);
    for (size_t n = 0; n < size && n < 10; n++)
      printf(" %.9g", Shape(info).type == 1 ? static_cast<float*>(data)[n] : double(static_cast<int64_t*>(data)[n]));
    puts("");
  }
} catch (const std::exception& error) { return fprintf(stderr, "load: %s\n", error.what()), 1; }
