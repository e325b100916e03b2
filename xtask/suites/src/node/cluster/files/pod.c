// Program of the pods of `cargo xtask node`: requests the pod's credentials from the metadata service
// repeatedly, as SDKs do, and prints a line for each attempt; under the name `pause` it only waits.
//
//   ask [-n times] [-i milliseconds between] [-a seconds to go on after SIGTERM] [-e expected role]
//       [-q] [-c]
//
// -n 0: without end. -q: prints failures, changes and every hundredth line. -c: prints the keys.
// A line:  +MILLISECONDS-SINCE-START WORD ROLE-OR-REASON [ok COUNT bad COUNT]
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t terminated;

static void terminate(int signal) { (void)signal; terminated = 1; }
static void quit(int signal) { (void)signal; _exit(0); }
static void reap(int signal) { (void)signal; while (waitpid(-1, NULL, WNOHANG) > 0) {} }

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e3 + time.tv_nsec / 1e6;
}

// Sends a request and leaves the answer's body in `body`; returns the status, or 0 with a reason.
static int exchange(const char *request, char *body, size_t size)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(80)};
	struct timeval limit = {20, 0};
	char answer[8192];
	size_t length = 0;
	ssize_t got = -1;
	inet_pton(AF_INET, "169.254.169.254", &to.sin_addr);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
	if (connect(fd, (struct sockaddr *)&to, sizeof to) == 0 &&
	    write(fd, request, strlen(request)) == (ssize_t)strlen(request)) {
		while (length < sizeof answer - 1 &&
		       (got = read(fd, answer + length, sizeof answer - 1 - length)) > 0)
			length += got;
	}
	int reason = errno;
	close(fd);
	answer[length] = 0;
	const char *begin = strstr(answer, "\r\n\r\n");
	if (!begin || strncmp(answer, "HTTP/1.1 ", 9) != 0) {
		snprintf(body, size, "%s", got < 0 ? strerror(reason) : "the connection was closed");
		return 0;
	}
	snprintf(body, size, "%s", begin + 4);
	for (char *at = body; *at; at++)
		if (*at == '\n' || *at == '\r')
			*at = ' ';
	return atoi(answer + 9);
}

#define SIZE 4096
#define HEAD " HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: kiam-node-pod\r\nConnection: close\r\n"
#define CREDENTIALS "/latest/meta-data/iam/security-credentials/"

// The whole exchange: a token, the role's name, the role's credentials.
static int ask(char *role, char *keys)
{
	char request[1024], token[256];
	int status = exchange("PUT /latest/api/token" HEAD
			      "X-aws-ec2-metadata-token-ttl-seconds: 300\r\nContent-Length: 0\r\n\r\n",
			      token, sizeof token);
	keys[0] = 0;
	if (status != 200) {
		snprintf(role, SIZE, "no token: %s", token);
		return status;
	}
	snprintf(request, sizeof request,
		 "GET " CREDENTIALS HEAD "X-aws-ec2-metadata-token: %s\r\n\r\n", token);
	status = exchange(request, role, SIZE);
	if (status != 200)
		return status;
	snprintf(request, sizeof request,
		 "GET " CREDENTIALS "%.200s" HEAD "X-aws-ec2-metadata-token: %s\r\n\r\n", role, token);
	status = exchange(request, keys, SIZE);
	if (status != 200)
		snprintf(role, SIZE, "no credentials: %.200s", keys);
	else if (!strstr(keys, "\"AccessKeyId\""))
		return 0;
	return status;
}

int main(int count, char **arguments)
{
	double start = now(), until = 0;
	const char *name = strrchr(arguments[0], '/');
	const char *expected = NULL;
	long times = 1, between = 200, after = 0;
	int quiet = 0, show = 0, option, good = 0, bad = 0;
	static char role[SIZE], keys[SIZE], last[SIZE];
	if (strcmp(name ? name + 1 : arguments[0], "pause") == 0) {
		signal(SIGINT, quit);
		signal(SIGTERM, quit);
		signal(SIGCHLD, reap);
		for (;;)
			pause();
	}
	while ((option = getopt(count, arguments, "n:i:a:e:qc")) > 0) {
		switch (option) {
		case 'n': times = atol(optarg); break;
		case 'i': between = atol(optarg); break;
		case 'a': after = atol(optarg); break;
		case 'e': expected = optarg; break;
		case 'q': quiet = 1; break;
		case 'c': show = 1; break;
		default: return 2;
		}
	}
	signal(SIGTERM, terminate);
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (long done = 0; times == 0 || done < times; done++) {
		if (terminated && until == 0) {
			until = now() + after * 1e3;
			printf("+%.0f terminating [ok %d bad %d]\n", now() - start, good, bad);
		}
		if (until > 0 && now() >= until)
			break;
		double began = now();
		int status = ask(role, keys);
		int right = status == 200 && (!expected || strcmp(role, expected) == 0);
		if (right)
			good++;
		else
			bad++;
		if (!quiet || !right || strcmp(role, last) != 0 || done % 100 == 0)
			printf("+%.1f %s%d %.120s [ok %d bad %d]\n", began - start,
			       right ? "" : "bad ", status, role, good, bad);
		if (show && status == 200)
			printf("keys %s\n", keys);
		strcpy(last, role);
		// As an SDK does; a pod that is known by its address is not known at once.
		if (show && status == 503 && bad < 10) {
			usleep(1000 * 1000);
			done--;
		} else if (times != 1)
			usleep(between * 1000);
	}
	printf("end [ok %d bad %d]\n", good, bad);
	return show ? good == 0 : bad > 0;
}
