# One address with several names, symbols without a size, a label inside a function.
	.text
	.globl	__exported, exported, longer_exported
	.type	exported, @function
	.type	__exported, @function
	.type	longer_exported, @function
	.type	a_local_name_that_is_longer, @function
a_local_name_that_is_longer:
__exported:
exported:
longer_exported:
	nop
	nop
inner_label:
	nop
	ret
	.size	exported, . - exported
	.size	__exported, . - __exported
	.size	longer_exported, . - longer_exported
	.size	a_local_name_that_is_longer, . - a_local_name_that_is_longer

	.globl	unsized
unsized:
	nop
	nop
	ret
	.globl	after
	.type	after, @function
after:
	ret
	.size	after, . - after
	nop
	nop

	.globl	main
	.type	main, @function
main:
	xorl	%eax, %eax
	ret
	.size	main, . - main
	.section .note.GNU-stack,"",@progbits
