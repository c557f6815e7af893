/* control.h - a node's control socket: a thread that answers questions about it.
 *
 * The socket is DIR/control.sock in the state directory (mode 0600). A client connects, writes one
 * line of words, and reads the answer until the end; the first line of an answer is "ok" or
 * "error SENTENCE". Requests:
 *
 *      status json | status text     the node's status
 *      wait NAME LEVEL TXID          "reached TXID" or "not TXID", where the second TXID is how far
 *                                    it is. NAME "" stands for the only database; LEVEL is
 *                                    received, applied or durable; TXID "-" is what is captured now
 *      ring NAME                     a read-only descriptor of that database's segment, as
 *                                    SCM_RIGHTS with the answer's first byte
 *
 * The thread never looks into the loop's structures: it asks for a picture (struct node_status)
 * and waits CONTROL_PICTURE_MS at most. A request is CONTROL_LINE_MAX bytes at most and a client
 * that is silent for CONTROL_CLIENT_MS is dropped. */
#ifndef WALWIRE_CONTROL_H
#define WALWIRE_CONTROL_H

#include "daemon/base/status.h"

#define CONTROL_LINE_MAX   1024
#define CONTROL_PICTURE_MS 1000
#define CONTROL_CLIENT_MS  2000

struct control;

/* Listen in `state_dir` and start the thread. `wake_fd` is an eventfd that is written when the
 * loop should call control_serve(). 0; -errno. */
int control_open(struct control **ret_c, const char *state_dir, int wake_fd);

/* Loop's thread, every cycle and after a wake; costs one load when nobody asks. `fill` paints the
 * picture into zeroed memory; `ring_fd` gives a read-only descriptor for a name, or -errno, and the
 * descriptor is then the control thread's to close. Both are called from within. */
struct control_source {
	void (*fill)(void *ctx, struct node_status *s);
	int (*ring_fd)(void *ctx, const char *name);
	void *ctx;
};
bool control_serve(struct control *c, const struct control_source *source);

/* Stop the thread and remove the socket. */
void control_close(struct control *c);

/* Client: send one request line, give the answer's stream (the caller closes it), and the
 * descriptor that came with it or -1. 0; -ENOENT or -ECONNREFUSED: nobody runs there; -errno. */
int control_ask(const char *state_dir, const char *line, FILE **ret_answer, int *ret_fd);

#endif
