#include "daemon/wire/address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_loopback(const struct sockaddr_storage *sa)
{
	if (sa->ss_family == AF_INET) {
		const struct sockaddr_in *in = (const void *)sa;

		return ntohl(in->sin_addr.s_addr) >> 24 == 127;
	}
	const struct sockaddr_in6 *in6 = (const void *)sa;

	return IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr);
}

int address_resolve(struct address *a, const char *host_port, bool passive, char *why,
		    size_t why_bytes)
{
	struct addrinfo hints = {
		.ai_socktype = SOCK_STREAM,
		.ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0),
	};
	struct addrinfo *list = NULL;
	const char *colon = strrchr(host_port, ':'), *begin = host_port;
	char host[256];
	size_t n;
	long port = colon ? strtol(colon + 1, NULL, 10) : 0;
	int rc;

	if (!colon || port < 1 || port > 65535 || strspn(colon + 1, "0123456789") != strlen(colon + 1))
		goto malformed;
	n = (size_t)(colon - host_port);
	if (n >= 2 && host_port[0] == '[' && host_port[n - 1] == ']') {
		begin++;
		n -= 2;
	} else if (memchr(host_port, ':', n)) {
		goto malformed; /* IPv6 without brackets */
	}
	if (n == 0 || n >= sizeof(host))
		goto malformed;
	memcpy(host, begin, n);
	host[n] = 0;
	rc = getaddrinfo(host, colon + 1, &hints, &list);
	if (rc || !list) {
		snprintf(why, why_bytes, "cannot resolve '%s' (%s); check the name or give an address",
			 host, gai_strerror(rc));
		return -ENOENT;
	}
	memset(a, 0, sizeof(*a));
	memcpy(&a->sa, list->ai_addr, list->ai_addrlen);
	a->bytes = list->ai_addrlen;
	a->loopback = is_loopback(&a->sa);
	freeaddrinfo(list);
	return 0;
malformed:
	snprintf(why, why_bytes, "'%s' is not an address; write HOST:PORT or [IPV6]:PORT", host_port);
	return -EINVAL;
}

void address_print(const struct sockaddr_storage *sa, char *to, size_t bytes)
{
	char host[INET6_ADDRSTRLEN] = "?";

	if (sa->ss_family == AF_INET) {
		const struct sockaddr_in *in = (const void *)sa;

		inet_ntop(AF_INET, &in->sin_addr, host, sizeof(host));
		snprintf(to, bytes, "%s:%u", host, ntohs(in->sin_port));
	} else {
		const struct sockaddr_in6 *in6 = (const void *)sa;

		inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof(host));
		snprintf(to, bytes, "[%s]:%u", host, ntohs(in6->sin6_port));
	}
}
