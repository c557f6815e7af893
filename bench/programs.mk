# Programs that play the application and its readers. Stock SQLite only: nothing of walwire is in them.
BENCH_PROGRAMS := $(B)/bench/writer $(B)/bench/delay

$(BENCH_PROGRAMS): $(B)/bench/%: bench/%.c bench/measure.h
	@mkdir -p $(@D)
	@echo "  CC    $@"
	$(Q)$(CC) $(CFLAGS) -o $@ $< -lsqlite3
