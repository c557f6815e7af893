# Each unit test names what its module may know. NAME_LINK lists objects, without the build folder.
UNIT_TESTS :=

define unit
UNIT_TESTS += $$(B)/tests/$(1)
$$(B)/tests/$(1): $$(B)/tests/$(1).o $$(addprefix $$(B)/,$(2))
	@echo "  LD    $$@"
	$$(Q)$$(CC) $$(CFLAGS) -o $$@ $$^ $(3)
-include $$(B)/tests/$(1).d
endef

$(eval $(call unit,test_ring,shm/ring.o,-lpthread))
$(eval $(call unit,test_segment,shm/segment.o shm/ring.o,-lnuma))
$(eval $(call unit,test_batch,daemon/wire/batch.o,-lxxhash))
$(eval $(call unit,test_message,daemon/wire/message.o,-lxxhash))
$(eval $(call unit,test_feed,daemon/wire/feed.o daemon/wire/batch.o shm/ring.o shm/segment.o \
	daemon/base/loop.o,-luring -lxxhash -lnuma))
$(eval $(call unit,test_address,daemon/wire/address.o,))
$(eval $(call unit,test_wal,daemon/wal/wal.o daemon/wal/checksum.o,))
$(eval $(call unit,test_wal_index,daemon/wal/wal_index.o,))
$(eval $(call unit,test_pin,daemon/wal/pin.o daemon/wal/conn.o daemon/wal/wal_index.o,-lsqlite3))
$(eval $(call unit,test_wal_writer,daemon/wal/wal_writer.o daemon/wal/conn.o daemon/wal/wal_index.o \
	daemon/wal/wal.o daemon/wal/checksum.o,-lsqlite3))
$(eval $(call unit,test_forecast,daemon/capture/forecast.o,))
$(eval $(call unit,test_loop,daemon/base/loop.o,-luring))
$(eval $(call unit,test_capture,daemon/capture/capture.o daemon/capture/capture_attach.o \
	daemon/capture/forecast.o daemon/wal/conn.o daemon/wal/pin.o \
	daemon/wal/wal_index.o daemon/wal/wal.o daemon/wal/checksum.o daemon/wire/feed.o daemon/wire/batch.o shm/ring.o \
	shm/segment.o daemon/base/loop.o daemon/base/slots.o,-luring -lsqlite3 -lxxhash -lnuma))
$(eval $(call unit,test_seed,daemon/ship/seed.o daemon/wal/conn.o daemon/wal/wal_index.o \
	daemon/wire/batch.o daemon/base/worker.o,-lsqlite3 -lxxhash -lpthread))
$(eval $(call unit,test_applier,daemon/apply/applier.o daemon/apply/applier_batch.o \
	daemon/apply/applier_table.o daemon/apply/applier_upkeep.o daemon/apply/copy.o daemon/apply/positions.o \
	daemon/wal/wal_writer.o daemon/wal/conn.o daemon/wal/wal_index.o daemon/wal/wal.o daemon/wal/checksum.o \
	daemon/wire/feed.o daemon/wire/batch.o shm/ring.o shm/segment.o daemon/base/loop.o \
	daemon/base/slots.o daemon/base/page_table.o daemon/base/worker.o,-luring -lsqlite3 -lxxhash -lnuma -lpthread))
$(eval $(call unit,test_link,daemon/apply/link.o daemon/wire/feed.o daemon/wire/batch.o \
	daemon/wire/message.o daemon/wire/socket.o shm/ring.o shm/segment.o daemon/base/loop.o,-luring \
	-lxxhash -lnuma))
$(eval $(call unit,test_server,$(patsubst %.c,%.o,$(wildcard daemon/ship/*.c)) \
	daemon/wal/conn.o daemon/wal/wal_index.o daemon/wire/feed.o daemon/wire/batch.o daemon/wire/message.o \
	daemon/wire/address.o daemon/wire/socket.o shm/ring.o shm/segment.o daemon/base/loop.o \
	daemon/base/worker.o,-luring -lsqlite3 -lxxhash -lnuma -lpthread))
$(eval $(call unit,test_positions,daemon/apply/positions.o,-lxxhash))
$(eval $(call unit,test_copy,daemon/apply/copy.o daemon/wire/batch.o,-lxxhash))
$(eval $(call unit,test_slots,daemon/base/slots.o,-lxxhash))
$(eval $(call unit,test_page_table,daemon/base/page_table.o,))
$(eval $(call unit,test_worker,daemon/base/worker.o,-lpthread))
$(eval $(call unit,test_pace,daemon/base/pace.o,))
$(eval $(call unit,test_tap,daemon/capture/tap.o,-lbpf -lsqlite3))
$(eval $(call unit,test_log,daemon/base/log.o,))
$(eval $(call unit,test_status,daemon/base/status.o,))
$(eval $(call unit,test_control,daemon/base/control.o daemon/base/control_request.o \
	daemon/base/control_socket.o daemon/base/status.o,-lpthread))
$(eval $(call unit,test_options,daemon/cmd/options.o daemon/base/log.o,))

-include tests/tools/tools.mk

tests: $(UNIT_TESTS) $(TEST_TOOLS)
