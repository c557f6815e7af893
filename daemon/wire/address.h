/* address.h - "HOST:PORT" and who may be talked to without a secured link. */
#ifndef WALWIRE_ADDRESS_H
#define WALWIRE_ADDRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>

#define DEFAULT_PORT   7077
#define DEFAULT_LISTEN "127.0.0.1:7077"

struct address {
	struct sockaddr_storage sa;
	socklen_t bytes;
	bool loopback;
};

/* Resolve; `passive` for listening. 0; -EINVAL (not HOST:PORT) or -ENOENT (does not resolve), with
 * a sentence in `why`. */
int address_resolve(struct address *a, const char *host_port, bool passive, char *why,
		    size_t why_bytes);

/* "1.2.3.4:56" or "[::1]:56". */
void address_print(const struct sockaddr_storage *sa, char *to, size_t bytes);

#endif
