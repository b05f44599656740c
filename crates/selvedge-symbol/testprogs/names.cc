#include <cstdio>
#include <vector>

namespace space {
struct Shape {
	int edges;
	explicit Shape(int n) __attribute__((noinline));
	int area(const std::vector<int> &sides) const __attribute__((noinline));
};
Shape::Shape(int n) : edges(n) {}
int Shape::area(const std::vector<int> &sides) const
{
	int sum = edges;
	for (int side : sides)
		sum += side;
	return sum;
}
template <typename T> __attribute__((noinline)) T twice(T value)
{
	volatile T copy = value;
	return copy + copy;
}
} // namespace space

int main(int argc, char **)
{
	space::Shape shape(argc);
	std::printf("%d %f\n", shape.area({1, 2, argc}), space::twice(1.5) + space::twice(argc));
	return 0;
}
