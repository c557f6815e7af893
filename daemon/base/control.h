/* control.h - a node's control socket: a thread that answers questions about it.
 *
 * The socket is DIR/control.sock in the state directory (mode 0600). A client connects, writes one
 * line of words, and reads the answer until the end. The first line of an answer is "ok", "busy
 * SENTENCE" (the loop gave no picture in time: ask again) or "error SENTENCE"; what follows "ok" is
 * the answer. Requests:
 *
 *      status json | status text     the node's status
 *      wait NAME LEVEL TXID          "reached HAVE" or "not HAVE WANT": how far it is, and the txid
 *                                    that is waited for; "-" is a txid nobody knows. LEVEL is
 *                                    received, applied or durable; TXID "-" is what is captured now
 *      ring NAME                     "ring NAME", and a read-only descriptor of that database's
 *                                    segment, as SCM_RIGHTS with the answer's first byte
 *
 * Words are separated by exactly one space. NAME is a database's name as one word: bytes up to
 * 0x20, 0x7f and '%' are written as %XX (control_word()). An empty NAME, which is an empty word,
 * stands for the only database.
 *
 * How far a database is: on a replica, how far this node is; on a primary, how far the slowest
 * connected replica is, and unknown while none is connected. What is captured now is unknown on a
 * replica that is not streaming. What is unknown is never reached.
 *
 * The thread never looks into the loop's structures: it asks for a picture (struct node_status)
 * and waits CONTROL_PICTURE_MS at most; a picture is never older than the request it answers. A
 * request is CONTROL_LINE_MAX bytes at most, its newline included, and a client that is silent for
 * CONTROL_CLIENT_MS, or does not take its answer for as long, is dropped. CONTROL_CLIENTS_MAX are
 * served at a time; more wait in line. */
#ifndef WALWIRE_CONTROL_H
#define WALWIRE_CONTROL_H

#include "daemon/base/status.h"

#define CONTROL_LINE_MAX    1024
#define CONTROL_PICTURE_MS  1000
#define CONTROL_CLIENT_MS   2000
#define CONTROL_CLIENTS_MAX 32
#define CONTROL_ANSWER_MS   5000	      /* a client gives up then */
#define CONTROL_ANSWER_MAX  (16u << 20)	      /* bytes; a client takes no longer answer */
#define CONTROL_WORD_MAX    (3 * DB_NAME_MAX) /* bytes of a name as one word, NUL included */

struct control;

/* Listen in `state_dir` (made with mode 0700 if it is missing and its parent is not) and start the
 * thread, which takes no signals and inherits the caller's cores: call it before loop_pin(). The
 * directory stays locked (flock) until control_close(), so a socket that a dead process left
 * behind is known to be stale and replaced. `wake_fd` is an eventfd that is written when the loop
 * should call control_serve(). 0; -EADDRINUSE: another walwire runs there; -ENOTSOCK: something
 * else has the socket's name; -errno. */
int control_open(struct control **ret_c, const char *state_dir, int wake_fd);

/* Loop's thread, every cycle and after a wake; costs one load when nobody asks. `fill` paints the
 * picture into zeroed memory; `ring_fd` gives a read-only descriptor for a name in that picture, or
 * -errno, and the descriptor is then the control thread's to close. Both are called from within.
 * True when something was asked. */
struct control_source {
	void (*fill)(void *ctx, struct node_status *s);
	int (*ring_fd)(void *ctx, const char *name);
	void *ctx;
};
bool control_serve(struct control *c, const struct control_source *source);

/* Stop the thread and remove the socket. Loop's thread; NULL is nothing to close. */
void control_close(struct control *c);

/* Client: send one request line (without its newline), give the whole answer's stream (the caller
 * closes it), and the descriptor that came with it or -1 (ret_fd may be NULL: then it is closed).
 * 0; -ENOENT or -ECONNREFUSED: nobody runs there; -ETIMEDOUT: no answer in CONTROL_ANSWER_MS;
 * -ECONNRESET: it ended before it answered; -EMSGSIZE: request or answer too long; -errno. */
int control_ask(const char *state_dir, const char *line, FILE **ret_answer, int *ret_fd);

/* `name` as one word. */
void control_word(char to[CONTROL_WORD_MAX], const char *name);

/* The name behind the word of `bytes` bytes. 0; -EINVAL: not such a word, or too long a name. */
int control_unword(char to[DB_NAME_MAX], const char *word, size_t bytes);

#endif
