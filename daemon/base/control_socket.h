/* control_socket.h - the control socket's name and how to listen there; control_ask() of control.h
 * is the other end of it. */
#ifndef WALWIRE_CONTROL_SOCKET_H
#define WALWIRE_CONTROL_SOCKET_H

#include <sys/un.h>

#define CONTROL_SOCKET "control.sock"

/* The socket's address; a path too long for one goes by `dir_fd`, the open state directory. */
void control_address(struct sockaddr_un *a, const char *state_dir, int dir_fd);

/* Make the directory if need be, lock it, and listen in it (nothing blocks on the socket). The lock
 * lasts as long as *ret_dir_fd. Errors as control_open(). */
int control_listen(const char *state_dir, int *ret_dir_fd, int *ret_listen_fd);

#endif
