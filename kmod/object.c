// SPDX-License-Identifier: GPL-2.0-only
/*
 * Ids and lifetime of what a session holds.
 *
 * An id is reserved before the object does anything that must be undone, and
 * published when nothing can fail any more; in between it cannot be looked up.
 */
#include <linux/rcupdate_wait.h>
#include <linux/slab.h>

#include "private.h"

/**
 * dmaprobe_object_reserve - give a new object its id
 * @s: session that will hold it
 * @obj: the object
 * @type: its type
 *
 * Return: 0, or -ENOMEM
 */
int dmaprobe_object_reserve(struct dmaprobe_session *s,
			    struct dmaprobe_object *obj,
			    const struct dmaprobe_object_type *type)
{
	obj->type = type;
	obj->session = s;
	refcount_set(&obj->refs, 1);
	return xa_alloc(&s->objects, &obj->id, XA_ZERO_ENTRY,
			XA_LIMIT(1, INT_MAX), GFP_KERNEL_ACCOUNT);
}

/**
 * dmaprobe_object_unreserve - take back the id of an object never published
 * @obj: the object
 */
void dmaprobe_object_unreserve(struct dmaprobe_object *obj)
{
	xa_erase(&obj->session->objects, obj->id);
}

/**
 * dmaprobe_object_publish - let lookups find an object
 * @ucmd: the call that made it
 * @obj: the object; its first reference is the xarray's from now on, and other
 *	calls can free it at once
 */
void dmaprobe_object_publish(struct dmaprobe_ucmd *ucmd,
			     struct dmaprobe_object *obj)
{
	struct xarray *xa = &obj->session->objects;

	ucmd->object = obj;
	ucmd->made = obj->id;
	/* Cannot fail: the reserved slot is there. */
	xa_lock(xa);
	__xa_store(xa, obj->id, obj, 0);
	if (obj->type->has_pages)
		__xa_set_mark(xa, obj->id, DMAPROBE_MARK_PAGES);
	xa_unlock(xa);
}

/**
 * dmaprobe_object_undo - take back what a call made but could not tell of
 * @ucmd: the call
 *
 * Nobody was told the id, but another thread can have guessed it.
 */
void dmaprobe_object_undo(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_session *s = ucmd->session;
	struct dmaprobe_object *obj = ucmd->object;

	guard(rwsem_read)(&s->dd->unplug_lock);
	scoped_guard(spinlock, &s->objects.xa_lock) {
		if (xa_load(&s->objects, ucmd->made) == obj)
			__xa_erase(&s->objects, ucmd->made);
		else
			obj = NULL;
	}
	ucmd->made = 0;
	if (!obj)
		return;
	if (obj->type->revoke)
		obj->type->revoke(obj);
	dmaprobe_object_put(obj);
}

/* The id that is meant: in a run it can be that of what an earlier call made. */
static u32 resolve_id(const struct dmaprobe_ucmd *ucmd, u32 id)
{
	u32 index = id & ~DMAPROBE_RUN_ID(0);

	if (likely(index == id))
		return id;
	if (!ucmd->run || index >= ucmd->run->nr)
		return 0;
	return ucmd->run->ids[index];
}

/**
 * dmaprobe_object_get - look an object up
 * @ucmd: the call that names it
 * @id: its id
 * @type: the type it must have, or NULL for any
 *
 * Return: the object with a reference taken, or ERR_PTR(-ENOENT)
 */
struct dmaprobe_object *
dmaprobe_object_get(const struct dmaprobe_ucmd *ucmd, u32 id,
		    const struct dmaprobe_object_type *type)
{
	struct dmaprobe_object *obj;

	id = resolve_id(ucmd, id);
	guard(rcu)();
	obj = xa_load(&ucmd->session->objects, id);
	if (!obj || (type && obj->type != type) ||
	    !refcount_inc_not_zero(&obj->refs))
		return ERR_PTR(-ENOENT);
	return obj;
}

/**
 * dmaprobe_object_put - give a reference back
 * @obj: the object; released and freed with the last one
 */
void dmaprobe_object_put(struct dmaprobe_object *obj)
{
	if (refcount_dec_and_test(&obj->refs)) {
		obj->type->release(obj);
		kfree_rcu(obj, rcu);
	}
}

/**
 * dmaprobe_object_destroy - take an object out of its session and release it
 * @ucmd: the call that names it
 * @id: its id
 * @type: the type it must have, or NULL for any that is a mapping
 *
 * Return: 0, -ENOENT, or -EBUSY while somebody else holds a reference
 */
int dmaprobe_object_destroy(const struct dmaprobe_ucmd *ucmd, u32 id,
			    const struct dmaprobe_object_type *type)
{
	struct dmaprobe_session *s = ucmd->session;
	struct dmaprobe_object *obj;

	id = resolve_id(ucmd, id);
	scoped_guard(spinlock, &s->objects.xa_lock) {
		obj = xa_load(&s->objects, id);
		if (!obj || (type ? obj->type != type : !obj->type->mapping))
			return -ENOENT;
		if (!refcount_dec_if_one(&obj->refs))
			return -EBUSY;
		__xa_erase(&s->objects, id);
	}

	obj->type->release(obj);
	kfree_rcu(obj, rcu);
	return 0;
}

/**
 * dmaprobe_objects_teardown - release what a session holds
 * @s: the session; no op is running in it
 * @memory: whether it is the turn of the memory, which comes after what maps it
 */
void dmaprobe_objects_teardown(struct dmaprobe_session *s, bool memory)
{
	struct dmaprobe_object *obj;
	unsigned long id;

	xa_for_each(&s->objects, id, obj) {
		if (obj->type->memory == memory) {
			xa_erase(&s->objects, id);
			if (obj->type->revoke)
				obj->type->revoke(obj);
			dmaprobe_object_put(obj);
		}
		cond_resched();
	}
	WARN_ON(memory && !xa_empty(&s->objects));
}

int dmaprobe_op_stats(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_stats *cmd = ucmd->cmd;
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
		++*(u32 *)((void *)cmd + obj->type->stats);
		if (need_resched()) {
			xas_pause(&xas);
			cond_resched_rcu();
		}
	}
	rcu_read_unlock();
	return 0;
}
