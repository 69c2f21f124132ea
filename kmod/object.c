// SPDX-License-Identifier: GPL-2.0-only
/* Ids and lifetime of what a session holds: see struct dmaprobe_object_type. */
#include <linux/dma-map-ops.h>
#include <linux/jiffies.h>
#include <linux/moduleparam.h>
#include <linux/nospec.h>
#include <linux/rcupdate_wait.h>
#include <linux/slab.h>

#include "private.h"

/* How long a teardown has the group before others that wait get their turn, in jiffies. */
#define TEARDOWN_STRETCH	msecs_to_jiffies(10)

static unsigned int device_max_addresses = 65536;
module_param(device_max_addresses, uint, 0644);
MODULE_PARM_DESC(device_max_addresses,
		 "DMA addresses that the unprivileged sessions of a device may hold together");

/*
 * Count DMA addresses that a session is about to make: behind each are a node of the IOVA
 * allocator, whose searches take longer the more there are, and page tables, for which
 * nobody is charged. Returns 0; -ENOSPC when there are too many; -EPERM for an unprivileged session
 * while the limits are those of a privileged one, or where zeroes may stay in the CPU's caches.
 */
int dmaprobe_address_get(struct dmaprobe_session *s, u32 n)
{
	unsigned long limit = s->privileged ? LONG_MAX : READ_ONCE(device_max_addresses);
	struct dmaprobe_device *dd = s->dd;

	if (!s->privileged && (dd->widened || !dev_is_dma_coherent(&dd->pdev->dev)))
		return -EPERM;
	return dmaprobe_count_below(&dd->nr_addresses[s->privileged], n, limit) ? 0 : -ENOSPC;
}

/* Undo dmaprobe_address_get(). */
void dmaprobe_address_put(struct dmaprobe_session *s, u32 n)
{
	atomic_long_sub(n, &s->dd->nr_addresses[s->privileged]);
}

/*
 * Put an object into its session's table, hidden. There is nothing of it to undo yet, so the
 * caller keeps dmaprobe_group::lock, which keeps teardown away, until dmaprobe_object_made() or
 * dmaprobe_object_cancel(). Returns 0, -ENOMEM, or what dmaprobe_address_get() returns.
 */
int dmaprobe_object_add(struct dmaprobe_session *s, struct dmaprobe_object *obj,
			const struct dmaprobe_object_type *type)
{
	int ret;

	obj->type = type;
	obj->session = s;
	refcount_set(&obj->refs, 0);
	obj->nr_addresses = obj->nr_addresses ?: type->has_address;
	ret = obj->nr_addresses ? dmaprobe_address_get(s, obj->nr_addresses) : 0;
	if (ret)
		return ret;
	ret = xa_alloc(&s->objects, &obj->id, obj, XA_LIMIT(1, INT_MAX), DMAPROBE_GFP);
	if (ret)
		dmaprobe_address_put(s, obj->nr_addresses);
	return ret == -EBUSY ? -ENOMEM : ret;
}

/* Undo dmaprobe_object_add(). Lookups may still look at the object: kfree_rcu(). */
void dmaprobe_object_cancel(struct dmaprobe_object *obj)
{
	xa_erase(&obj->session->objects, obj->id);
	dmaprobe_address_put(obj->session, obj->nr_addresses);
}

/* The object is complete: the call's answer shows it, or teardown releases it. */
void dmaprobe_object_made(struct dmaprobe_ucmd *ucmd, struct dmaprobe_object *obj)
{
	ucmd->made = obj->id;
	ucmd->id = obj->id;
	if (obj->type->has_pages)
		xa_set_mark(&obj->session->objects, obj->id, DMAPROBE_MARK_PAGES);
}

static void object_free(struct dmaprobe_object *obj)
{
	struct dmaprobe_session *s = obj->session;
	u32 nr = obj->type->revoke ? 0 : obj->nr_addresses;

	obj->type->release(obj);
	if (nr)
		dmaprobe_address_put(s, nr);
}

/* Let lookups find an object, unless teardown has taken it since it was added. */
void dmaprobe_object_show(struct dmaprobe_session *s, u32 id)
{
	struct dmaprobe_object *obj;

	xa_lock(&s->objects);
	obj = xa_load(&s->objects, id);
	if (obj)
		refcount_set_release(&obj->refs, 1);
	xa_unlock(&s->objects);
}

/* Release an object that was never shown, unless teardown has. */
void dmaprobe_object_withdraw(struct dmaprobe_session *s, u32 id)
{
	struct dmaprobe_object *obj;

	guard(rwsem_read)(&s->dd->group->lock);
	if (s->dd->unplugged)
		return;
	obj = xa_erase(&s->objects, id);
	object_free(obj);
}

/* The id that is meant: in a run it can be that of what an earlier call made. */
u32 dmaprobe_resolve_id(struct dmaprobe_ucmd *ucmd, u32 id)
{
	u32 index = id & ~DMAPROBE_RUN_ID(0);

	if (likely(index == id))
		return id;
	if (!ucmd->run || index >= ucmd->run->nr)
		return 0;
	return ucmd->run->ops[array_index_nospec(index, ucmd->run->nr)].cmd;
}

/* Look an object up, of one type or of any (NULL), and hold it. */
struct dmaprobe_object *
dmaprobe_object_get(struct dmaprobe_ucmd *ucmd, u32 id, const struct dmaprobe_object_type *type)
{
	struct dmaprobe_object *obj;

	id = dmaprobe_resolve_id(ucmd, id);
	guard(rcu)();
	obj = xa_load(&ucmd->session->objects, id);
	if (!obj || (type && obj->type != type) || !dmaprobe_object_tryget(obj))
		return ERR_PTR(-ENOENT);
	if (!ucmd->id)
		ucmd->id = id;
	return obj;
}

void dmaprobe_object_put(struct dmaprobe_object *obj)
{
	if (refcount_dec_and_test(&obj->refs))
		object_free(obj);
}

/*
 * Release an object of a type that the command @cmd ends, unless somebody else holds a
 * reference; @attrs become its attributes.
 */
static int object_destroy(struct dmaprobe_ucmd *ucmd, u32 id, unsigned int cmd, u64 attrs)
{
	/* Found and taken out in one walk. */
	XA_STATE(xas, &ucmd->session->objects, dmaprobe_resolve_id(ucmd, id));
	struct dmaprobe_object *obj;

	ucmd->id = xas.xa_index;
	scoped_guard(spinlock, &xas.xa->xa_lock) {
		obj = xas_load(&xas);
		/* At index 0 the xarray has an entry of its own. */
		if (!obj || xa_is_zero(obj) || obj->type->end_cmd != cmd ||
		    !refcount_read(&obj->refs))
			return -ENOENT;
		if ((obj->attrs ^ attrs) & ~(u64)DMAPROBE_ATTR_SKIP_CPU_SYNC)
			return -EINVAL;
		if (obj->type->may_block && ucmd->nonblock)
			return -EAGAIN;
		if (!refcount_dec_if_one(&obj->refs))
			return -EBUSY;
		smp_acquire__after_ctrl_dep();	/* what others did before they put it */
		xas_store(&xas, NULL);
	}
	obj->attrs = attrs;
	object_free(obj);
	return 0;
}

int dmaprobe_op_destroy(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_destroy *cmd = ucmd->cmd;

	return object_destroy(ucmd, cmd->id, DMAPROBE_DESTROY, 0);
}

int dmaprobe_op_unmap(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_unmap *cmd = ucmd->cmd;
	int ret = dmaprobe_check_attrs(cmd->attrs, DMAPROBE_MAP_ATTRS | DMAPROBE_ATTR_CC_SHARED);

	return ret ?: object_destroy(ucmd, cmd->id, DMAPROBE_UNMAP, cmd->attrs);
}

/* Let others have the group meanwhile; not after each part, since they make us wait in turn. */
static void teardown_pause(struct dmaprobe_group *group, unsigned long *since)
{
	cond_resched();
	if (!rwsem_is_contended(&group->lock) || time_before(jiffies, *since + TEARDOWN_STRETCH))
		return;
	up_read(&group->lock);
	down_read(&group->lock);
	*since = jiffies;
}

/*
 * Release what a session holds, in any order: who uses an object holds it. When unplug and close
 * come at the same time, the second one waits for the first, and finds nothing.
 */
void dmaprobe_objects_teardown(struct dmaprobe_session *s)
{
	struct dmaprobe_group *group = s->dd->group;
	unsigned long since = jiffies;
	struct dmaprobe_object *obj;
	unsigned long id;

	mutex_lock(&s->teardown);
	down_read(&group->lock);
	xa_for_each(&s->objects, id, obj) {
		while (obj->type->drain && obj->type->drain(obj))
			teardown_pause(group, &since);
		if (obj->type->disconnect) {
			up_read(&group->lock);
			obj->type->disconnect(obj);
			down_read(&group->lock);
		}
		xa_erase(&s->objects, id);
		if (obj->type->revoke)
			obj->type->revoke(obj);
		if (refcount_read(&obj->refs))
			dmaprobe_object_put(obj);
		else
			object_free(obj);
		teardown_pause(group, &since);
	}
	up_read(&group->lock);
	WARN_ON(!xa_empty(&s->objects));
	mutex_unlock(&s->teardown);
}

int dmaprobe_op_get_stats(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_get_stats *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	XA_STATE(xas, &s->objects, 0);
	struct dmaprobe_object *obj;

	memset_after(cmd, 0, flags);
	cmd->charged = (u64)atomic_long_read(&s->nr_pages) << PAGE_SHIFT;
	cmd->pinned = (u64)atomic_long_read(&s->nr_pinned) << PAGE_SHIFT;

	rcu_read_lock();
	xas_for_each(&xas, obj, ULONG_MAX) {
		if (xas_retry(&xas, obj))
			continue;
		if (refcount_read(&obj->refs))
			++*(u32 *)((void *)cmd + obj->type->stats);
		if (need_resched()) {
			xas_pause(&xas);
			cond_resched_rcu();
		}
	}
	rcu_read_unlock();
	return 0;
}
