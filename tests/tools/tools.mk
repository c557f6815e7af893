# Programs that judge a running walwire from outside: stock SQLite, nothing of walwire's own.
TEST_TOOLS :=

define tool
TEST_TOOLS += $$(B)/tests/tools/$(1)
$$(B)/tests/tools/$(1): $$(patsubst %,$$(B)/tests/tools/%.o,$(1) state $(2))
	@echo "  LD    $$@"
	$$(Q)$$(CC) $$(CFLAGS) -o $$@ $$^ -lsqlite3 -lpthread
-include $$(B)/tests/tools/$(1).d
endef

$(eval $(call tool,writer,writer_acts))
$(eval $(call tool,reader,))
$(eval $(call tool,fdchurn,))
-include $(B)/tests/tools/state.d $(B)/tests/tools/writer_acts.d

TEST_TOOLS += $(B)/tests/tools/slowsync.so
$(B)/tests/tools/slowsync.so: tests/tools/slowsync.c
	@mkdir -p $(@D)
	@echo "  LD    $@"
	$(Q)$(CC) $(filter-out -fsanitize=%,$(CFLAGS)) -fPIC -shared -o $@ $<
