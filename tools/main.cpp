// The `clary` command: reads the command line, runs one subcommand, turns failures into one line and an exit code.
#include <fmt/format.h>

#include <cstdio>
#include <exception>
#include <new>

#include "clary/clary.h"
#include "options.h"

namespace clary::command {
namespace {

int run(int argc, char** argv) {
  CLI::App app("Attention in 4 and 8 bits: run it, check its error, time it, see what it does.", "clary");
  app.set_version_flag("--version", std::string("clary ") + clary_version());
  app.require_subcommand(1);
  app.failure_message([](const CLI::App*, const CLI::Error& error) {
    return fmt::format("clary: {}\nRun with --help for more information.\n", error.what());
  });
  app.footer(
      "`clary COMMAND --help` shows a command's options and an example.\n"
      "Exit codes: 0 fine, 1 a check failed, 2 wrong usage or input.");
  Action action;
  add_demo_command(app, action);
  add_info_command(app, action);
  add_run_command(app, action);
  add_check_command(app, action);
  add_bench_command(app, action);
  add_explain_command(app, action);
  const auto asked = [&](const CLI::App* command) { return command->get_name() == argv[1]; };
  if (argc > 1 && argv[1][0] != '-' && app.get_subcommands(asked).empty())
    throw std::runtime_error(fmt::format("'{}' is not a command; clary --help lists them", argv[1]));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kFine : kWrongUse;
  }
  const int code = action();
  if (std::fflush(stdout) != 0) throw std::runtime_error("cannot write to standard output");
  return code;
}

}  // namespace
}  // namespace clary::command

int main(int argc, char** argv) {
  try {
    return clary::command::run(argc, argv);
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "clary: not enough memory for these tensors\n");
  } catch (const std::exception& error) {
    fmt::print(stderr, "clary: {}\n", error.what());
  }
  return clary::command::kWrongUse;
}
