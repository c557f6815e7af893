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
$(eval $(call unit,test_log,daemon/base/log.o,))
$(eval $(call unit,test_status,daemon/base/status.o,))
$(eval $(call unit,test_control,daemon/base/control.o daemon/base/control_request.o \
	daemon/base/control_socket.o daemon/base/status.o,-lpthread))
$(eval $(call unit,test_options,daemon/cmd/options.o daemon/base/log.o,))

-include tests/tools/tools.mk

tests: $(UNIT_TESTS) $(TEST_TOOLS)
