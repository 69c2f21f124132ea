// SPDX-License-Identifier: GPL-2.0-only
/*
 * IOVA spaces: a dma_iova_state each, and the record of what is linked in it.
 *
 * The kernel's calls trust their caller. They map beyond the space, WARN about what is
 * not linked and leave entries behind, and cannot take part of a large page-table entry
 * away. So the record decides whether a call is legal, and only legal ones are made.
 */
#include <linux/capability.h>
#include <linux/dma-map-ops.h>
#include <linux/overflow.h>
#include <linux/rbtree.h>
#include <linux/slab.h>

#include "compat.h"
#include "private.h"

struct dmaprobe_iova {
	struct dmaprobe_object obj;
	struct mutex lock;		/* all below */
	struct dma_iova_state state;
	struct rb_root links;		/* by offset, never overlapping */
	u32 nr_links;
	u64 linked;
	bool revoked;			/* the state was freed or destroyed */
};

/* One dma_iova_link() that stands. It covers whole granules, first to last. */
struct dmaprobe_link {
	struct rb_node node;
	struct dmaprobe_buffer *buf;	/* NULL for part of a BAR */
	u64 first;
	u64 last;
	u64 offset;
	u64 length;
	u64 attrs;			/* DMAPROBE_ATTR_* */
	u32 dir;
};

#define to_link(n) rb_entry_safe(n, struct dmaprobe_link, node)

#define LINK_ATTRS	(DMAPROBE_MAP_ATTRS | DMAPROBE_ATTR_MMIO)

/* Links that teardown unlinks at a stretch. */
#define DRAIN_BATCH	64

static u64 link_end(const struct dmaprobe_link *link)
{
	return link->offset + link->length;
}

static int link_cmp(struct rb_node *a, const struct rb_node *b)
{
	const struct dmaprobe_link *new = to_link(a), *old = to_link(b);

	if (new->last < old->first)
		return -1;
	return new->first > old->last;
}

static int addr_cmp(const void *key, const struct rb_node *node)
{
	const struct dmaprobe_link *link = to_link(node);
	u64 addr = *(const u64 *)key;

	if (addr < link->first)
		return -1;
	return addr > link->last;
}

/* The link at an offset of the space, or NULL. */
static struct dmaprobe_link *link_at(struct dmaprobe_iova *iova, u64 offset)
{
	u64 addr = iova->state.addr + offset;

	return to_link(rb_find(&addr, &iova->links, addr_cmp));
}

static void link_drop(struct dmaprobe_iova *iova, struct dmaprobe_link *link)
{
	rb_erase(&link->node, &iova->links);
	iova->nr_links--;
	iova->linked -= link->length;
	dmaprobe_address_put(iova->obj.session, 1);
	dmaprobe_buffer_put(link->buf);
	kfree(link);
}

/* Nobody else has the space. */
static bool iova_drain(struct dmaprobe_object *obj)
{
	struct dmaprobe_iova *iova = container_of(obj, struct dmaprobe_iova, obj);
	struct dmaprobe_link *link;
	unsigned int i;

	for (i = 0; i < DRAIN_BATCH; i++) {
		link = to_link(rb_first(&iova->links));
		if (!link)
			return false;
		dma_iova_unlink(dmaprobe_dma_dev(obj->session), &iova->state, link->offset,
				link->length, link->dir,
				dmaprobe_map_attrs(obj->session, link->attrs));
		link_drop(iova, link);
	}
	return true;
}

static void iova_release(struct dmaprobe_object *obj)
{
	struct dmaprobe_iova *iova = container_of(obj, struct dmaprobe_iova, obj);

	WARN_ON(iova->nr_links);	/* nobody gives a space back with links */
	if (!iova->revoked && dma_use_iova(&iova->state))
		dma_iova_free(dmaprobe_dma_dev(obj->session), &iova->state);
	kfree_rcu(iova, obj.rcu);
}

static const struct dmaprobe_object_type iova_type = {
	.release = iova_release,
	.drain = iova_drain,
	.has_address = true,
	.stats = offsetof(struct dmaprobe_get_stats, nr_iovas),
};

static void iova_unlock(struct dmaprobe_iova *iova)
{
	if (!IS_ERR(iova)) {
		mutex_unlock(&iova->lock);
		dmaprobe_object_put(&iova->obj);
	}
}

DEFINE_FREE(iova_unlock, struct dmaprobe_iova *, iova_unlock(_T))

/* Look an IOVA space up and lock it; with @use, one that has space. */
static struct dmaprobe_iova *iova_lock(struct dmaprobe_ucmd *ucmd, u32 id, bool use)
{
	struct dmaprobe_object *obj = dmaprobe_object_get(ucmd, id, &iova_type);
	struct dmaprobe_iova *iova;
	int ret;

	if (IS_ERR(obj))
		return ERR_CAST(obj);
	iova = container_of(obj, struct dmaprobe_iova, obj);
	if (!ucmd->nonblock) {
		mutex_lock(&iova->lock);
	} else if (!mutex_trylock(&iova->lock)) {
		dmaprobe_object_put(obj);
		return ERR_PTR(-EAGAIN);
	}
	ret = iova->revoked ? -ENOENT :
	      use && !dma_use_iova(&iova->state) ? -EOPNOTSUPP : 0;
	if (!ret)
		return iova;
	iova_unlock(iova);
	return ERR_PTR(ret);
}

/* The same for a call that undoes links like @like. */
static struct dmaprobe_iova *iova_lock_linked(struct dmaprobe_ucmd *ucmd, u32 id,
					      const struct dmaprobe_link *like)
{
	int ret = dmaprobe_check_attrs(like->attrs, LINK_ATTRS);

	if (!ret && !dmaprobe_valid_dir(like->dir))
		ret = -EINVAL;
	return ret ? ERR_PTR(ret) : iova_lock(ucmd, id, true);
}

/* The state is gone: nobody may find the object any more. */
static void iova_end(struct dmaprobe_iova *iova)
{
	lockdep_assert_held(&iova->lock);
	iova->revoked = true;
	xa_erase(&iova->obj.session->objects, iova->obj.id);
	dmaprobe_object_put(&iova->obj);
}

/* For the trace. */
static void note_range(struct dmaprobe_ucmd *ucmd, struct dmaprobe_iova *iova, u64 offset,
		       u64 length)
{
	ucmd->iova = iova->state.addr + offset;
	ucmd->length = length;
}

/*
 * Check that a range is in the space and linked without a hole; with @like also that it cuts
 * through no link and that all links have the direction and the attributes of that one.
 */
static int check_linked(struct dmaprobe_iova *iova, u64 offset, u64 length,
			const struct dmaprobe_link *like)
{
	u64 end, cur = offset;
	struct dmaprobe_link *link;

	if (!length || length > DMAPROBE_IOVA_RANGE_MAX ||
	    check_add_overflow(offset, length, &end) || end > dma_iova_size(&iova->state))
		return -EINVAL;

	link = link_at(iova, offset);
	if (like && link && link->offset != offset)
		return -EINVAL;
	for (; cur < end; link = to_link(rb_next(&link->node))) {
		if (!link || link->offset > cur)
			return -ENXIO;
		if (like && (link_end(link) > end || link->dir != like->dir ||
			     link->attrs != like->attrs))
			return -EINVAL;
		cur = link_end(link);
	}
	return 0;
}

/* The physical address that the first link is to have, or 0. */
static int first_phys(struct dmaprobe_ucmd *ucmd, phys_addr_t *phys)
{
	const struct dmaprobe_iova_alloc *cmd = ucmd->cmd;

	*phys = 0;
	if (!cmd->buffer_id)
		return 0;
	struct dmaprobe_buffer *buf __free(dmaprobe_buffer_put) =
		dmaprobe_buffer_get(ucmd, cmd->buffer_id);
	if (IS_ERR(buf))
		return PTR_ERR(buf);
	return dmaprobe_buffer_range(buf, cmd->buffer_offset, 1, DMAPROBE_DIR_TO_DEVICE, phys);
}

int dmaprobe_op_iova_alloc(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_iova_alloc *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	bool try = cmd->flags & DMAPROBE_IOVA_ALLOC_TRY;
	struct dmaprobe_iova *iova;
	phys_addr_t phys;
	int ret;

	/* The top bits belong to the kernel and to rounding. */
	if (!cmd->length || cmd->length > BIT_ULL(62) || (!cmd->buffer_id && cmd->buffer_offset))
		return -EINVAL;
	if (cmd->length > DMAPROBE_IOVA_RANGE_MAX && !capable(CAP_SYS_RAWIO))
		return -EPERM;
	if (!try && (!DMAPROBE_HAVE_DMA_IOVA || !dmaprobe_translates(s->dd)))
		return -EOPNOTSUPP;
	ret = first_phys(ucmd, &phys);
	if (ret)
		return ret;

	iova = kzalloc_obj(*iova, DMAPROBE_GFP);
	if (!iova)
		return -ENOMEM;
	mutex_init(&iova->lock);
	iova->links = RB_ROOT;
	ret = dmaprobe_object_add(s, &iova->obj, &iova_type);
	if (ret)
		goto err_free;
	if (!dma_iova_try_alloc(dmaprobe_dma_dev(s), &iova->state, phys, cmd->length) && !try) {
		ret = -ENOSPC;
		goto err_cancel;
	}

	cmd->id = iova->obj.id;
	cmd->addr = iova->state.addr;
	dmaprobe_object_made(ucmd, &iova->obj);
	note_range(ucmd, iova, 0, cmd->length);
	return 0;

err_cancel:
	dmaprobe_object_cancel(&iova->obj);
err_free:
	kfree_rcu(iova, obj.rcu);
	return ret;
}

int dmaprobe_op_iova_free(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_iova_free *cmd = ucmd->cmd;

	struct dmaprobe_iova *iova __free(iova_unlock) = iova_lock(ucmd, cmd->id, false);
	if (IS_ERR(iova))
		return PTR_ERR(iova);
	if (iova->nr_links)
		return -EBUSY;

	note_range(ucmd, iova, 0, dma_iova_size(&iova->state));
	if (dma_use_iova(&iova->state))
		dma_iova_free(dmaprobe_dma_dev(ucmd->session), &iova->state);
	iova_end(iova);
	return 0;
}

/* The rules of dma_iova_link() that do not depend on the other links. */
static int check_link(struct dmaprobe_iova *iova, phys_addr_t phys, u64 offset,
		      u64 length, u64 granule_mask)
{
	u64 addr, end;

	if (length > DMAPROBE_IOVA_RANGE_MAX ||
	    check_add_overflow(offset, length, &end) || end > dma_iova_size(&iova->state))
		return -EINVAL;
	addr = iova->state.addr + offset;
	if (!offset)
		return (phys ^ addr) & granule_mask ? -EINVAL : 0;
	return (phys | addr) & granule_mask ? -EINVAL : 0;
}

/* Put a link into the record, if its neighbours allow it. */
static int link_insert(struct dmaprobe_iova *iova, struct dmaprobe_link *link, u64 granule_mask)
{
	struct dmaprobe_link *prev, *next;

	if (rb_find_add(&link->node, &iova->links, link_cmp))
		return -EEXIST;
	prev = to_link(rb_prev(&link->node));
	next = to_link(rb_next(&link->node));
	if ((prev && ((iova->state.addr + link_end(prev)) & granule_mask)) ||
	    (next && ((iova->state.addr + link_end(link)) & granule_mask))) {
		rb_erase(&link->node, &iova->links);
		return -EINVAL;
	}
	return 0;
}

/* Find what is to be linked: part of a BAR (NULL), or a range of a buffer, held. */
static struct dmaprobe_buffer *link_source(struct dmaprobe_ucmd *ucmd, phys_addr_t *phys)
{
	const struct dmaprobe_iova_link *cmd = ucmd->cmd;
	struct dmaprobe_buffer *buf = NULL;
	int ret;

	if (cmd->attrs & DMAPROBE_ATTR_MMIO) {
		ret = dmaprobe_bar_range(ucmd->session->dd, cmd->bar,
					 cmd->buffer_offset, cmd->length, phys);
	} else {
		buf = dmaprobe_buffer_get(ucmd, cmd->buffer_id);
		if (IS_ERR(buf))
			return buf;
		ret = dmaprobe_buffer_range(buf, cmd->buffer_offset, cmd->length, cmd->dir, phys);
	}
	if (!ret)
		return buf;
	dmaprobe_buffer_put(buf);
	return ERR_PTR(ret);
}

int dmaprobe_op_iova_link(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_iova_link *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	phys_addr_t phys;
	u64 mask;
	int ret = dmaprobe_check_map_attrs(s, cmd->attrs, LINK_ATTRS);

	if (ret)
		return ret;
	if ((cmd->attrs & DMAPROBE_ATTR_MMIO ? cmd->buffer_id : cmd->bar) ||
	    !dmaprobe_valid_dir(cmd->dir))
		return -EINVAL;

	struct dmaprobe_iova *iova __free(iova_unlock) = iova_lock(ucmd, cmd->id, true);
	if (IS_ERR(iova))
		return PTR_ERR(iova);
	struct dmaprobe_buffer *buf __free(dmaprobe_buffer_put) = link_source(ucmd, &phys);
	if (IS_ERR(buf))
		return PTR_ERR(buf);
	mask = dmaprobe_granule(s->dd) - 1;
	ret = check_link(iova, phys, cmd->offset, cmd->length, mask);
	if (ret)
		return ret;
	/* The kernel bounces it to a place that is aligned otherwise, and fails, loudly. */
	if (!(cmd->attrs & DMAPROBE_ATTR_MMIO) &&
	    (s->dd->direct_max != SIZE_MAX ||
	     dma_kmalloc_needs_bounce(&s->dd->pdev->dev, cmd->length, cmd->dir)) &&
	    (phys & mask & ~(u64)dma_get_min_align_mask(&s->dd->pdev->dev)))
		return -EOPNOTSUPP;
	/* The kernel WARNs about it, and answers the same. */
	if ((cmd->attrs & DMAPROBE_ATTR_REQUIRE_COHERENT) &&
	    (iova->state.__size & DMA_IOVA_USE_SWIOTLB))
		return -EOPNOTSUPP;

	struct dmaprobe_link *link __free(kfree) = kzalloc_obj(*link, DMAPROBE_GFP);
	if (!link)
		return -ENOMEM;
	link->offset = cmd->offset;
	link->length = cmd->length;
	link->dir = cmd->dir;
	link->attrs = cmd->attrs;
	link->first = (iova->state.addr + cmd->offset) & ~mask;
	link->last = (iova->state.addr + cmd->offset + cmd->length - 1) | mask;
	note_range(ucmd, iova, cmd->offset, cmd->length);
	ret = dmaprobe_address_get(s, 1);
	if (ret)
		return ret;
	ret = link_insert(iova, link, mask);
	if (!ret) {
		ret = dma_iova_link(dmaprobe_dma_dev(s), &iova->state, phys, cmd->offset,
				    cmd->length, cmd->dir, dmaprobe_map_attrs(s, cmd->attrs));
		if (ret)
			rb_erase(&link->node, &iova->links);
	}
	if (ret) {
		dmaprobe_address_put(s, 1);
		return ret;
	}
	link->buf = no_free_ptr(buf);
	iova->nr_links++;
	iova->linked += link->length;
	retain_and_null_ptr(link);
	return 0;
}

int dmaprobe_op_iova_sync(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_iova_sync *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	int ret;

	struct dmaprobe_iova *iova __free(iova_unlock) = iova_lock(ucmd, cmd->id, true);
	if (IS_ERR(iova))
		return PTR_ERR(iova);
	ret = check_linked(iova, cmd->offset, cmd->length, NULL);
	if (ret)
		return ret;
	note_range(ucmd, iova, cmd->offset, cmd->length);
	return dma_iova_sync(dmaprobe_dma_dev(s), &iova->state, cmd->offset, cmd->length);
}

int dmaprobe_op_iova_unlink(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_iova_unlink *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	struct dmaprobe_link like = { .dir = cmd->dir, .attrs = cmd->attrs };
	struct dmaprobe_link *link, *next;
	int ret;

	struct dmaprobe_iova *iova __free(iova_unlock) = iova_lock_linked(ucmd, cmd->id, &like);
	if (IS_ERR(iova))
		return PTR_ERR(iova);
	ret = check_linked(iova, cmd->offset, cmd->length, &like);
	if (ret)
		return ret;

	note_range(ucmd, iova, cmd->offset, cmd->length);
	dma_iova_unlink(dmaprobe_dma_dev(s), &iova->state, cmd->offset, cmd->length,
			cmd->dir, dmaprobe_map_attrs(s, cmd->attrs));
	for (link = link_at(iova, cmd->offset);
	     link && link->offset < cmd->offset + cmd->length; link = next) {
		next = to_link(rb_next(&link->node));
		link_drop(iova, link);
	}
	return 0;
}

int dmaprobe_op_iova_destroy(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_iova_destroy *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	struct dmaprobe_link like = { .dir = cmd->dir, .attrs = cmd->attrs };
	struct dmaprobe_link *link;
	int ret;

	struct dmaprobe_iova *iova __free(iova_unlock) = iova_lock_linked(ucmd, cmd->id, &like);
	if (IS_ERR(iova))
		return PTR_ERR(iova);
	ret = cmd->mapped_len ? check_linked(iova, 0, cmd->mapped_len, &like) : 0;
	if (ret)
		return ret;
	link = to_link(rb_last(&iova->links));
	if (link && link_end(link) > cmd->mapped_len)
		return -EBUSY;

	note_range(ucmd, iova, 0, cmd->mapped_len);
	dma_iova_destroy(dmaprobe_dma_dev(s), &iova->state, cmd->mapped_len, cmd->dir,
			 dmaprobe_map_attrs(s, cmd->attrs));
	while ((link = to_link(rb_first(&iova->links))))
		link_drop(iova, link);
	iova_end(iova);
	return 0;
}

int dmaprobe_op_get_iova_state(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_get_iova_state *cmd = ucmd->cmd;

	struct dmaprobe_iova *iova __free(iova_unlock) = iova_lock(ucmd, cmd->id, false);
	if (IS_ERR(iova))
		return PTR_ERR(iova);

	cmd->use = dma_use_iova(&iova->state);
	cmd->addr = iova->state.addr;
	cmd->length = dma_iova_size(&iova->state);
	cmd->linked = iova->linked;
	cmd->nr_links = iova->nr_links;
	cmd->bounced = !!(iova->state.__size & DMA_IOVA_USE_SWIOTLB);
	return 0;
}
