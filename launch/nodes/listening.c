/* A bind(2) in front of libc's, for programs that can only listen on all interfaces (see listening.py).
 *
 * A TCP socket that would be bound to 0.0.0.0 or :: is bound to the IPv4 address in BRT_LISTEN_ADDRESS; everything else
 * is passed on as it came.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

typedef int (*bind_function)(int, const struct sockaddr *, socklen_t);

static int is_tcp(int descriptor) {
    int type = 0;
    socklen_t size = sizeof type;
    return getsockopt(descriptor, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_STREAM;
}

int bind(int descriptor, const struct sockaddr *address, socklen_t size) {
    bind_function next = (bind_function)dlsym(RTLD_NEXT, "bind");
    if (next == NULL) {
        errno = ENOSYS;
        return -1;
    }
    const char *wanted = getenv("BRT_LISTEN_ADDRESS");
    struct in_addr own;
    if (address == NULL || wanted == NULL || inet_pton(AF_INET, wanted, &own) != 1 || !is_tcp(descriptor))
        return next(descriptor, address, size);

    if (address->sa_family == AF_INET && size >= sizeof(struct sockaddr_in)) {
        struct sockaddr_in moved;
        memcpy(&moved, address, sizeof moved);
        if (moved.sin_addr.s_addr == htonl(INADDR_ANY)) {
            moved.sin_addr = own;
            return next(descriptor, (struct sockaddr *)&moved, sizeof moved);
        }
    } else if (address->sa_family == AF_INET6 && size >= sizeof(struct sockaddr_in6)) {
        static const unsigned char mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
        struct sockaddr_in6 moved;
        memcpy(&moved, address, sizeof moved);
        unsigned char *bytes = moved.sin6_addr.s6_addr;
        int any4 = memcmp(bytes, mapped, sizeof mapped) == 0 && memcmp(bytes + 12, "\0\0\0\0", 4) == 0;
        if (IN6_IS_ADDR_UNSPECIFIED(&moved.sin6_addr) || any4) {
            int no = 0; /* a socket for IPv6 alone takes no IPv4 address */
            setsockopt(descriptor, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no);
            memcpy(bytes, mapped, sizeof mapped);
            memcpy(bytes + 12, &own, sizeof own);
            return next(descriptor, (struct sockaddr *)&moved, sizeof moved);
        }
    }
    return next(descriptor, address, size);
}
