#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/isa.h"

namespace mate::cpu {

namespace amx {
const Kernels& table();
}
namespace avx512_bf16 {
const Kernels& table();
}
namespace avx512 {
const Kernels& table();
}
namespace avx2 {
const Kernels& table();
}
namespace scalar {
const Kernels& table();
}

namespace {

bool always() { return true; }

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512cd");
}

bool has_avx512_bf16() {
  return has_avx512() && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512bf16");
}

// Linux gives a process the tile registers when it asks; older kernels do not know the question.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // as <asm/prctl.h> names them
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool has_amx() {
  static const bool has = has_avx512_bf16() && __builtin_cpu_supports("amx-tile") &&
                          __builtin_cpu_supports("amx-bf16") && may_use_tiles();
  return has;
}

// A name of its own: code of an instruction set runs only where it is supported.
struct Choice {
  const char* name;
  bool (*supported)();
  const Kernels& (*table)();
};

// Best first: the first one the machine supports is taken unless MATE_PLUGIN_ISA names another.
constexpr Choice kChoices[] = {{"amx", has_amx, amx::table},
                               {"avx512_bf16", has_avx512_bf16, avx512_bf16::table},
                               {"avx512", has_avx512, avx512::table},
                               {"avx2", has_avx2, avx2::table},
                               {"scalar", always, scalar::table}};

const std::string& names(bool only_supported) {
  auto join = [](bool supported_only) {
    std::string all;
    for (const Choice& choice : kChoices) {
      if (supported_only && !choice.supported()) continue;
      all += (all.empty() ? "" : ",") + std::string(choice.name);
    }
    return all;
  };
  static const std::string known = join(false), supported = join(true);
  return only_supported ? supported : known;
}

const Kernels& choose() {
  const char* wanted = std::getenv("MATE_PLUGIN_ISA");
  if (wanted == nullptr || *wanted == '\0') {
    for (const Choice& choice : kChoices) {
      if (choice.supported()) return choice.table();
    }
  }
  for (const Choice& choice : kChoices) {
    if (wanted != std::string(choice.name)) continue;
    if (choice.supported()) return choice.table();
    throw std::invalid_argument("MATE_PLUGIN_ISA: this machine cannot run '" + std::string(wanted) +
                                "'; it can run " + names(true));
  }
  throw std::invalid_argument("MATE_PLUGIN_ISA: expected one of " + names(false) + ", got '" +
                              std::string(wanted) + "'");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

const char* available() { return names(true).c_str(); }

}  // namespace mate::cpu
