// Runs a target on the files named, each in the directories named: the corpus as a test, without libFuzzer.
#include <dirent.h>

#include <fstream>
#include <iterator>
#include <vector>

#include "target.h"

int main(int count, char** arguments) {
  int runs = 0;
  for (int i = 1; i < count; ++i) {
    const std::string directory = arguments[i];
    DIR* entries = ::opendir(directory.c_str());
    require(entries != nullptr, "the directory can be read");
    while (const dirent* entry = ::readdir(entries)) {
      if (entry->d_name[0] == '.') continue;
      std::ifstream file(directory + "/" + entry->d_name, std::ios::binary);
      const std::vector<char> input(std::istreambuf_iterator<char>(file), {});
      std::fprintf(stderr, "%s\n", entry->d_name);
      // A copy of its very size, so that a sanitizer sees a read beyond its end.
      std::vector<std::uint8_t> bytes(input.begin(), input.end());
      bytes.shrink_to_fit();
      LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
      ++runs;
    }
    ::closedir(entries);
  }
  std::printf("%d inputs\n", runs);
}
