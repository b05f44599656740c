/* Exceptions through frames with and without destructors, caught and thrown on. */
#include <stdexcept>

struct Count {
    int *value;
    ~Count() { ++*value; }
};

__attribute__((noinline)) static int deep(int n, int *count)
{
    Count on_exit{count};
    if (n == 0)
        throw std::runtime_error("selvedge");
    if (n != 2)
        return deep(n - 1, count) + *count;
    try {
        return deep(n - 1, count) + 1;
    } catch (const std::exception &) {
        throw;
    }
}

int main()
{
    int count = 0;
    try {
        return deep(4, &count);
    } catch (const std::runtime_error &) {
        return count == 5 ? 0 : 1;
    }
}
