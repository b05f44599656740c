// Throws through as many frames as its argument says, or 50, each of which has something to destroy.
#include <cstdio>
#include <cstdlib>
#include <string>

struct Guard {
  int *open;
  explicit Guard(int *open) : open(open) { ++*open; }
  ~Guard() { --*open; }
};

__attribute__((noinline)) static int down(int n, int *open, const std::string &text) {
  Guard guard(open);
  if (n == 0) throw std::string("deep ") + text;
  return down(n - 1, open, text) + *open;
}

int main(int count, char **arguments) {
  int open = 0, depth = count > 1 ? std::atoi(arguments[1]) : 50;
  try {
    std::printf("%d\n", down(depth, &open, "down"));
  } catch (const std::string &caught) {
    std::printf("%s %d\n", caught.c_str(), open);
  }
}
