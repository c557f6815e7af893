# Each unit test names what its module may know. NAME_LINK lists objects, without the build folder.
UNIT_TESTS :=

define unit
UNIT_TESTS += $$(B)/tests/$(1)
$$(B)/tests/$(1): $$(B)/tests/$(1).o $$(addprefix $$(B)/,$(2))
	@echo "  LD    $$@"
	$$(Q)$$(CC) $$(CFLAGS) -o $$@ $$^ $(3)
-include $$(B)/tests/$(1).d
endef

$(eval $(call unit,test_ring,shm/ring.o,))
$(eval $(call unit,test_segment,shm/segment.o shm/ring.o,-lnuma))
$(eval $(call unit,test_batch,daemon/wire/batch.o,-lxxhash))
$(eval $(call unit,test_tap,daemon/capture/tap.o,-lbpf -lsqlite3))

-include tests/tools/tools.mk

tests: $(UNIT_TESTS) $(TEST_TOOLS)
