/* message.h - what is said on the wire besides batches.
 *
 * TCP; little-endian; messages of fixed length, each with a check (XXH3, 64 bits, of all bytes
 * before it). A peer that sends anything else is dropped, and the time for the first message is
 * limited (HELLO_MS).
 *
 *   replica -> source   hello, 344 bytes
 *     0  magic "walwire\n"   8  version (u16)   10  kind (u16): 1 follow, 2 list
 *    12  page size, 0 unknown (u32)            16  timeline (u32)   20  0 (u32)
 *    24  txid (u64)         32  chain (u64)    40  database id (16 bytes, zeros: none yet)
 *    56  name (256 bytes, NUL-padded)         312  zeros (24)      336  check
 *
 *   source -> replica   answer, 344 bytes
 *     0  magic "walwire\n"   8  version (u16)   10  verdict (u16), enum verdict
 *    12  page size (u32)    16  timeline (u32) 20  names that follow (u32; list only)
 *    24  txid (u64)         32  chain (u64)    40  database id (16 bytes)
 *    56  a sentence (256 bytes, NUL-padded)   312  zeros (24)      336  check
 *   After a list: that many names, 256 bytes each, then the connection ends.
 *   After continue or seed: batches (batch.h), for ever.
 *
 *   replica -> source   ack, 64 bytes, whenever one of them has changed
 *     0  magic "WACK" (u32)  4  0 (u32)         8  received   16  applied   24  durable (txids)
 *    32  the applied commit's own time_ns, 0 unknown           40  zeros (16)   56  check
 */
#ifndef WALWIRE_MESSAGE_H
#define WALWIRE_MESSAGE_H

#include <stdint.h>

#include "daemon/base/status.h"
#include "daemon/wire/batch.h"

#define WIRE_VERSION	1
#define HELLO_BYTES	344u
#define ACK_BYTES	64u
#define WIRE_NAME_BYTES 256u
#define HELLO_MS	5000

enum hello_kind { HELLO_FOLLOW = 1, HELLO_LIST = 2 };
enum verdict { VERDICT_CONTINUE = 1, VERDICT_SEED = 2, VERDICT_REFUSED = 3, VERDICT_LIST = 4,
	       VERDICT_LATER = 5 /* not now; ask again in a while */ };

/* Both messages have one layout; `what` is the kind or the verdict. */
struct hello {
	uint16_t version;
	uint16_t what;
	uint32_t page_bytes;
	uint32_t names;
	struct position at;
	uint8_t db_id[16];
	char text[WIRE_NAME_BYTES];
};

struct ack {
	uint64_t received, applied, durable;
	uint64_t applied_time_ns;
};

void hello_put(uint8_t to[HELLO_BYTES], const struct hello *h);
/* 0; -EPROTO: not walwire or damaged; -EPROTONOSUPPORT: another version (ret_h->version is set). */
int hello_get(const uint8_t from[HELLO_BYTES], struct hello *ret_h);

void ack_put(uint8_t to[ACK_BYTES], const struct ack *a);
/* 0; -EPROTO. */
int ack_get(const uint8_t from[ACK_BYTES], struct ack *ret_a);

/* Is `name` a database's plain base name: not empty, no slash, not hidden, no control bytes? */
bool name_is_plain(const char *name);

#endif
