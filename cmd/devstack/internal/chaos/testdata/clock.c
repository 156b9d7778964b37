/*
 * A wrong wall clock for a Go program: CLOCK_OFFSET seconds ahead, or behind if
 * negative. To be preloaded (LD_PRELOAD) into a dynamically linked binary.
 *
 * libfaketime replaces functions of the C library, and Go does not call those:
 * it asks the code that the kernel maps into each process, the vDSO. So this
 * overwrites the beginning of that code, in this process's copy of it, with a
 * jump to a function that asks the kernel and adds the offset. Only the wall
 * clock is changed; timers run on the monotonic one, as on a real machine whose
 * clock is wrong. Where it cannot be done the process ends: a test with the right
 * time would prove nothing.
 */
#include <elf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#define SYMBOL "__vdso_clock_gettime"
#elif defined(__aarch64__)
#define SYMBOL "__kernel_clock_gettime"
#else
#error "not written for this processor"
#endif

static int64_t offset;

/* Not libc's: this runs on a stack of Go's, without C's thread state. */
static long gettime(long id, long to)
{
#if defined(__x86_64__)
	long r;
	__asm__ volatile("syscall" : "=a"(r) : "a"(SYS_clock_gettime), "D"(id), "S"(to) : "rcx", "r11", "memory");
	return r;
#else
	register long x8 __asm__("x8") = SYS_clock_gettime;
	register long x0 __asm__("x0") = id;
	register long x1 __asm__("x1") = to;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1) : "memory");
	return x0;
#endif
}

static int shifted(long id, struct timespec *t)
{
	int r = (int)gettime(id, (long)t);
	if (r == 0 && id == CLOCK_REALTIME)
		t->tv_sec += offset;
	return r;
}

/* The symbol table ends where the last chain of the newer hash table does. */
static uint32_t count(const uint32_t *gnu)
{
	const uint32_t *buckets = gnu + 4 + gnu[2] * (sizeof(Elf64_Addr) / 4);
	const uint32_t *chains = buckets + gnu[0];
	uint32_t last = 0;
	for (uint32_t i = 0; i < gnu[0]; i++)
		if (buckets[i] > last)
			last = buckets[i];
	if (last == 0)
		return 0;
	while (!(chains[last - gnu[1]] & 1))
		last++;
	return last + 1;
}

static void *find(uintptr_t base, const char *name)
{
	const Elf64_Ehdr *head = (void *)base;
	const Elf64_Phdr *parts = (void *)(base + head->e_phoff);
	const Elf64_Dyn *dyn = NULL;
	uintptr_t shift = base;
	for (int i = head->e_phnum - 1; i >= 0; i--) {
		if (parts[i].p_type == PT_LOAD)
			shift = base + parts[i].p_offset - parts[i].p_vaddr;
		if (parts[i].p_type == PT_DYNAMIC)
			dyn = (void *)(base + parts[i].p_offset);
	}
	const char *names = NULL;
	const Elf64_Sym *symbols = NULL;
	uint32_t n = 0;
	for (; dyn != NULL && dyn->d_tag != DT_NULL; dyn++) {
		void *at = (void *)(shift + dyn->d_un.d_ptr);
		switch (dyn->d_tag) {
		case DT_STRTAB: names = at; break;
		case DT_SYMTAB: symbols = at; break;
		case DT_HASH: n = ((uint32_t *)at)[1]; break;
		case DT_GNU_HASH: if (n == 0) n = count(at); break;
		}
	}
	for (uint32_t i = 0; names != NULL && symbols != NULL && i < n; i++)
		if (strcmp(names + symbols[i].st_name, name) == 0)
			return (void *)(shift + symbols[i].st_value);
	return NULL;
}

/* Rights can only be changed for all of it. */
static int vdso(unsigned long *from, unsigned long *to)
{
	char line[256];
	int found = 0;
	FILE *maps = fopen("/proc/self/maps", "r");
	while (maps != NULL && !found && fgets(line, sizeof line, maps) != NULL)
		found = strstr(line, "[vdso]") != NULL && sscanf(line, "%lx-%lx", from, to) == 2;
	if (maps != NULL)
		fclose(maps);
	return found;
}

__attribute__((constructor)) static void init(void)
{
	const char *text = getenv("CLOCK_OFFSET");
	if (text == NULL)
		return;
	offset = atoll(text);
	uintptr_t base = getauxval(AT_SYSINFO_EHDR);
	unsigned char *code = base == 0 ? NULL : find(base, SYMBOL);
	unsigned long from = 0, to = 0;
	void *instead = (void *)shifted;
#if defined(__x86_64__)
	unsigned char jump[] = {0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0}; /* mov rax, instead; jmp rax */
	memcpy(jump + 2, &instead, 8);
#else
	unsigned char jump[] = {0x50, 0, 0, 0x58, 0, 0x02, 0x1f, 0xd6, 0, 0, 0, 0, 0, 0, 0, 0}; /* ldr x16, instead; br x16 */
	memcpy(jump + 8, &instead, 8);
#endif
	if (code == NULL || !vdso(&from, &to) || mprotect((void *)from, to - from, PROT_READ | PROT_WRITE | PROT_EXEC) != 0) {
		fprintf(stderr, "the clock cannot be changed\n");
		_exit(1);
	}
	memcpy(code, jump, sizeof jump);
	__builtin___clear_cache((char *)code, (char *)code + sizeof jump);
}
