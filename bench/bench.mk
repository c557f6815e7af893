# Programs of the benchmarks; each is a single file, linked with stock libraries only.
-include bench/programs.mk

bench: all $(BENCH_PROGRAMS)
	$(Q)bench/run
