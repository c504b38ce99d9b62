// A session of onnxruntime by memoptc's contract (MODEL.session.json), which says how it needs least memory.
//
// Left out is what C has no setting for: the order of nodes, and optimizers to leave out. The numbers are the same.
#pragma once
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <regex>
#include <string>
#include <vector>
#include "ort.hpp"

inline std::string read(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Keys and values of an object in the contract; none where it is null.
inline std::map<std::string, std::string> section(const std::string& contract, const std::string& name) {
  std::map<std::string, std::string> found;
  std::smatch body, entry;
  if (!std::regex_search(contract, body, std::regex('"' + name + "\": \\{([^}]*)\\}"))) return found;
  const std::regex pair("\"([^\"]+)\": \"?([^\",\\s]+)");
  for (std::string rest = body[1]; std::regex_search(rest, entry, pair); rest = entry.suffix().str())
    found[entry[1]] = entry[2];
  return found;
}

inline Pointer make_session(const std::string& model) {
  const std::string contract = read(model.substr(0, model.rfind(".onnx")) + ".session.json");
  auto set = section(contract, "session"), config = section(contract, "config"), arena = section(contract, "arena");
  Pointer environment, options, session, cpu, sized;
  call(CreateEnv, 3, "memoptc", &environment);
  call(CreateSessionOptions, &options);
  call(set["enable_mem_pattern"] == "false" ? DisableMemPattern : EnableMemPattern, options);
  call(set["enable_cpu_mem_arena"] == "false" ? DisableCpuMemArena : EnableCpuMemArena, options);
  call(SetSessionGraphOptimizationLevel, options, set["graph_optimization_level"] == "ORT_DISABLE_ALL" ? 0 : 99);
  call(SetIntraOpNumThreads, options, std::atoi(set["intra_op_num_threads"].c_str()));
  if (!arena.empty()) {  // of the size that was measured
    std::vector<const char*> keys;
    std::vector<size_t> values;
    for (const auto& [key, value] : arena) keys.push_back(key.c_str()), values.push_back(std::stoull(value));
    call(CreateMemoryInfo, "Cpu", 1, 0, 0, &cpu);
    call(CreateArenaCfgV2, keys.data(), values.data(), keys.size(), &sized);
    call(CreateAndRegisterAllocator, environment, cpu, sized);
    config["session.use_env_allocators"] = "1";
  }
  for (const auto& [key, value] : config) call(AddSessionConfigEntry, options, key.c_str(), value.c_str());
  call(CreateSession, environment, model.c_str(), options, &session);
  return session;
}
