/* sender.h - one connection of the server; see server.h for its life. */
#ifndef WALWIRE_SENDER_H
#define WALWIRE_SENDER_H

#include "daemon/ship/server.h"

void sender_start(struct sender *s, struct server *server, int fd, const char *addr);
/* One step; the work done. */
unsigned int sender_do_work(struct sender *s);
/* Begin to close; do_work brings it to SENDER_FREE. */
void sender_close(struct sender *s);
void sender_status(const struct sender *s, struct peer_status *p);

#endif
