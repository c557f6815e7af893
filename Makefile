# walwire. Targets: all (default), check, demo, bench, deps, install, clean. V=1 shows the commands.
# SAN=address or SAN=thread builds everything in build/SAN with that sanitizer.

SAN     ?=
B       := build$(if $(SAN),/$(SAN))
CC      := gcc
CLANG   := clang
BPFTOOL := $(firstword $(wildcard /usr/sbin/bpftool) bpftool)
Q       := $(if $(V),,@)

comma    := ,
SANFLAGS := $(if $(filter address,$(SAN)),-fsanitize=address$(comma)undefined -fno-sanitize-recover=all)
SANFLAGS += $(if $(filter thread,$(SAN)),-fsanitize=thread)

# Sentences are bounded on purpose, so -Wno-format-truncation.
WARN    := -Wall -Wextra -Wno-format-truncation -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Werror
CFLAGS  := -std=gnu11 -O2 -g -fno-strict-aliasing -D_GNU_SOURCE -I. -I$(B) $(WARN) $(SANFLAGS)
LIBS    := -luring -lbpf -lsqlite3 -lxxhash -lnuma -lpthread

DAEMON_SRC := $(wildcard daemon/*.c daemon/*/*.c shm/*.c)
MODULES    := $(patsubst %.c,$(B)/%.o,$(filter-out daemon/main.c,$(DAEMON_SRC)))
SKELETON   := $(B)/bpf/tap.skel.h

all: $(B)/walwire

$(B)/walwire: $(B)/daemon/main.o $(MODULES)
	@echo "  LD    $@"
	$(Q)$(CC) $(CFLAGS) -o $@ $^ $(LIBS)

$(B)/%.o: %.c
	@mkdir -p $(@D)
	@echo "  CC    $<"
	$(Q)$(CC) $(CFLAGS) -MMD -MP -c -o $@ $<

# The BPF program and its skeleton.
$(B)/bpf/tap.bpf.o: bpf/tap.bpf.c bpf/tap_event.h
	@mkdir -p $(@D)
	@echo "  BPF   $<"
	$(Q)$(CLANG) -g -O2 -Wall -Werror -target bpf -D__TARGET_ARCH_x86 -I. \
		-I/usr/include/$(shell gcc -print-multiarch) -c -o $@ $<

$(SKELETON): $(B)/bpf/tap.bpf.o
	@echo "  SKEL  $@"
	$(Q)$(BPFTOOL) gen skeleton $< name tap_bpf > $@.tmp && mv $@.tmp $@

$(B)/daemon/capture/tap.o: $(SKELETON)

include tests/tests.mk
include bench/bench.mk

deps:
	$(Q)./.ci/deps

check: deps
	$(Q)$(MAKE) --no-print-directory all tests
	$(Q)tests/run_all

demo: deps
	$(Q)$(MAKE) --no-print-directory all
	$(Q)tests/demo

PREFIX ?= /usr/local
install: all
	install -D -m 755 build/walwire $(DESTDIR)$(PREFIX)/bin/walwire

clean:
	rm -rf build

-include $(patsubst %.o,%.d,$(MODULES) $(B)/daemon/main.o)

.PHONY: all check demo bench deps install clean tests
.DELETE_ON_ERROR:
