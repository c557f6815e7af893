/* socket.h - what both ends want of a TCP socket. */
#ifndef WALWIRE_SOCKET_H
#define WALWIRE_SOCKET_H

#define SOCKET_DEAD_MS 15000 /* nothing acknowledged for so long: the peer is gone */

/* No delay for small messages; notice a vanished peer. */
void socket_tune(int fd);

#endif
