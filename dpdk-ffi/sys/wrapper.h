/* What the bindings are made of. Compiled by bindgen, and again for the static inlines. */
#define _GNU_SOURCE
#include <stdio.h>

#include <rte_bus.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_epoll.h>
#include <rte_errno.h>
#include <rte_eth_ring.h>
#include <rte_ethdev.h>
#include <rte_ip.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mbuf_pool_ops.h>
#include <rte_mempool.h>
#include <rte_memory.h>
#include <rte_ring.h>
#include <rte_version.h>

/* rte_errno is a macro over a thread-local variable, which bindgen would bind as a plain one. */
static inline int dpdk_errno(void)
{
	return rte_errno;
}
