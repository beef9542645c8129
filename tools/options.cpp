#include "options.h"

#include <algorithm>

namespace clary::command {
namespace {

// A check that the value is what may follow `prefix` in a described problem.
std::function<std::string(const std::string&)> grammar(std::string prefix) {
  return [prefix = std::move(prefix)](const std::string& value) -> std::string {
    if (value.empty() || value.find(' ') != value.npos) return "'" + value + "' is not a value";
    try {
      support::parse_problem(prefix + value);
      return "";
    } catch (const std::invalid_argument& error) {
      const std::string_view text = error.what();
      const size_t at = text.rfind("': ");
      return "'" + value + "': " + std::string(at == text.npos ? text : text.substr(at + 3));
    }
  };
}

}  // namespace

void add_machine_options(CLI::App& app, MachineOptions& options) {
  app.add_option("--threads", options.threads, "Threads (default: the cores this process may use)")
      ->check(CLI::Range(1, 4096))
      ->type_name("N");
  app.add_option("--isa", options.isa,
                 "Instruction set by name; `clary info` lists them (default: CLARY_ISA, else the best)")
      ->type_name("NAME");
}

void add_attention_options(CLI::App& app, AttentionOptions& options) {
  const auto add = [&](const char* name, std::string& value, const char* prefix, const char* type, const char* help) {
    app.add_option(name, value, help)->check(grammar(prefix), "")->type_name(type)->group("Attention");
  };
  add("--causal", options.causal, "causal=", "WHERE",
      "top_left, bottom_right, or a number: query i sees keys j <= i + number");
  add("--window", options.window, "window", "L,R", "Query i, aligned with key a, sees keys a - L to a + R; -1 = open");
  add("--softcap", options.softcap, "softcap", "C", "Scores become C tanh(s / C); 0 = none");
  add("--scale", options.scale, "scale", "X", "Factor of q.k (default: 1 / sqrt of the head dimension)");
  add("--guard", options.guard, "guard", "E",
      "Budget for each head's relative L2 error; heads over it are repeated more precisely");
  add("--layout", options.layout, "", "LAYOUT", "bhsd (default) or bshd");
  const auto add_file = [&](const char* name, std::string& value, const char* help) {
    app.add_option(name, value, help)->type_name("FILE.npy")->group("Attention");
  };
  add_file("--mask", options.mask, "bool (true = attend) or additive, broadcast to [B, Hq, Lq, Lk]");
  add_file("--alibi-slopes", options.alibi_slopes, "float32 [Hq] or [B, Hq]");
  add_file("--sinks", options.sinks, "float32 [Hq]");
  app.add_flag("--f32-output", options.f32_output, "O in float32 although the inputs are float16")->group("Attention");
}

support::Problem problem_of(const AttentionOptions& options) {
  std::string line = "l1";
  const auto append = [&](const std::string& value, const char* prefix) {
    if (!value.empty()) line += std::string(" ") + prefix + value;
  };
  append(options.precision, "precision=");
  append(options.causal, "causal=");
  append(options.window, "window");
  append(options.softcap, "softcap");
  append(options.scale, "scale");
  append(options.guard, "guard");
  append(options.layout, "");
  return support::parse_problem(line);
}

void add_input_options(CLI::App& app, InputOptions& options) {
  CLI::Option* const input =
      app.add_option("--input", options.input, "Q, K and V in one file: tensors PREFIX.q, PREFIX.k, PREFIX.v")
          ->type_name("FILE.safetensors")
          ->group("Input");
  app.add_option("--prefix", options.prefix, "Which tensors of --input")
      ->needs(input)
      ->type_name("NAME")
      ->group("Input");
  const auto add_file = [&](const char* name, std::string& value, const char* help) {
    return app.add_option(name, value, help)->type_name("FILE.npy")->excludes(input)->group("Input");
  };
  CLI::Option* const q = add_file("--q", options.q, "[B, Hq, Lq, Dk], float32 or float16");
  CLI::Option* const k = add_file("--k", options.k, "[B, Hkv, Lk, Dk]");
  CLI::Option* const v = add_file("--v", options.v, "[B, Hkv, Lk, Dv]");
  q->needs(k)->needs(v);
  k->needs(q);
  v->needs(q);
}

void add_precision_list(CLI::App& app, std::string& list, const std::string& fallback) {
  const auto check = [](const std::string& value) -> std::string {
    try {
      parse_precisions(value);
      return "";
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
  };
  app.add_option("--precision", list, "Some of exact,bf16x3,bf16,int8_f16,int8,int4,auto (default: " + fallback + ")")
      ->check(check, "")
      ->type_name("LIST");
}

std::vector<clary_precision> parse_precisions(const std::string& list) {
  std::vector<clary_precision> result;
  for (size_t start = 0; start <= list.size();) {
    const size_t end = std::min(list.find(',', start), list.size());
    const std::string name = list.substr(start, end - start);
    int precision = CLARY_EXACT;
    while (precision <= CLARY_BF16X3 && name != support::name_of(static_cast<clary_precision>(precision))) ++precision;
    if (precision > CLARY_BF16X3)
      throw std::invalid_argument("'" + name +
                                  "': expected exact, bf16x3, bf16, int8_f16, int8, int4 or auto, separated by commas");
    result.push_back(static_cast<clary_precision>(precision));
    start = end + 1;
  }
  return result;
}

std::vector<std::string> join_problems(const std::vector<std::string>& words) {
  const bool quoted =
      std::any_of(words.begin(), words.end(), [](const auto& word) { return word.find(' ') != word.npos; });
  if (quoted || words.empty()) return words;
  std::string line;
  for (const std::string& word : words) line += (line.empty() ? "" : " ") + word;
  return {line};
}

}  // namespace clary::command
