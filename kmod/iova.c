// SPDX-License-Identifier: GPL-2.0-only
/*
 * IOVA spaces: a dma_iova_state each, and the record of what is linked in it.
 *
 * The kernel's calls trust their caller. They map beyond the space, WARN about
 * what is not linked and leave entries behind, and cannot take part of a large
 * page-table entry away. So the record decides whether a call is legal, and only
 * legal ones are made.
 */
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
	bool dead;			/* the state was freed or destroyed */
};

static_assert(offsetof(struct dmaprobe_iova, obj) == 0);

/* One dma_iova_link() that stands. It covers whole granules, first to last. */
struct link {
	struct rb_node node;
	struct dmaprobe_buffer *buf;	/* NULL for part of a BAR */
	u64 first;
	u64 last;
	u64 offset;
	u64 length;
	u32 attrs;			/* DMA_ATTR_* */
	u32 dir;
};

#define to_link(n) rb_entry_safe(n, struct link, node)

static u64 link_end(const struct link *link)
{
	return link->offset + link->length;
}

static int link_cmp(struct rb_node *a, const struct rb_node *b)
{
	const struct link *new = to_link(a), *old = to_link(b);

	if (new->last < old->first)
		return -1;
	return new->first > old->last;
}

static int addr_cmp(const void *key, const struct rb_node *node)
{
	const struct link *link = to_link(node);
	u64 addr = *(const u64 *)key;

	if (addr < link->first)
		return -1;
	return addr > link->last;
}

/* The link at an offset of the space, or NULL. */
static struct link *link_at(struct dmaprobe_iova *iova, u64 offset)
{
	u64 addr = iova->state.addr + offset;

	return to_link(rb_find(&addr, &iova->links, addr_cmp));
}

static void link_drop(struct dmaprobe_iova *iova, struct link *link)
{
	rb_erase(&link->node, &iova->links);
	iova->nr_links--;
	iova->linked -= link->length;
	dmaprobe_buffer_put(link->buf);
	kfree(link);
}

static void iova_release(struct dmaprobe_object *obj)
{
	struct dmaprobe_iova *iova =
		container_of(obj, struct dmaprobe_iova, obj);
	struct device *dev = dmaprobe_dma_dev(obj->session);
	struct link *link;

	while ((link = to_link(rb_first(&iova->links)))) {
		dma_iova_unlink(dev, &iova->state, link->offset, link->length,
				link->dir, link->attrs);
		link_drop(iova, link);
		cond_resched();
	}
	if (!iova->dead)
		dma_iova_free(dev, &iova->state);
	mutex_destroy(&iova->lock);
}

static const struct dmaprobe_object_type iova_type = {
	.release = iova_release,
	.stats = offsetof(struct dmaprobe_stats, nr_iovas),
};

/* Look an IOVA space up and lock it. */
static struct dmaprobe_iova *iova_lock(const struct dmaprobe_ucmd *ucmd, u32 id)
{
	struct dmaprobe_object *obj = dmaprobe_object_get(ucmd, id, &iova_type);
	struct dmaprobe_iova *iova;

	if (IS_ERR(obj))
		return ERR_CAST(obj);
	iova = container_of(obj, struct dmaprobe_iova, obj);
	mutex_lock(&iova->lock);
	if (!iova->dead)
		return iova;

	mutex_unlock(&iova->lock);
	dmaprobe_object_put(obj);
	return ERR_PTR(-ENOENT);
}

static void iova_unlock(struct dmaprobe_iova *iova)
{
	if (!IS_ERR(iova)) {
		mutex_unlock(&iova->lock);
		dmaprobe_object_put(&iova->obj);
	}
}

DEFINE_FREE(iova_unlock, struct dmaprobe_iova *, iova_unlock(_T))

/* The state is gone: nobody may find the object any more. */
static void iova_bury(struct dmaprobe_iova *iova)
{
	lockdep_assert_held(&iova->lock);
	iova->dead = true;
	xa_erase(&iova->obj.session->objects, iova->obj.id);
	dmaprobe_object_put(&iova->obj);
}

/*
 * Check that a range is in the space and linked without a hole; with @like also
 * that it cuts through no link and that all links have the direction and the
 * attributes of that one.
 */
static int check_linked(struct dmaprobe_iova *iova, u64 offset, u64 length,
			const struct link *like)
{
	u64 end, cur = offset;
	struct link *link;

	if (!length || check_add_overflow(offset, length, &end) ||
	    end > dma_iova_size(&iova->state))
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

int dmaprobe_op_iova_alloc(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_iova_alloc *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	struct dmaprobe_iova *iova;
	phys_addr_t phys = 0;
	int ret;

	/* The top bits belong to the kernel and to rounding. */
	if (!cmd->length || cmd->length > BIT_ULL(62))
		return -EINVAL;
	if (!cmd->buffer_id && cmd->buffer_offset)
		return -EINVAL;
	if (!DMAPROBE_HAVE_DMA_IOVA || !dmaprobe_translates(s->dd))
		return -EOPNOTSUPP;

	if (cmd->buffer_id) {
		struct dmaprobe_buffer *buf;

		buf = dmaprobe_buffer_get(ucmd, cmd->buffer_id);
		if (IS_ERR(buf))
			return PTR_ERR(buf);
		ret = dmaprobe_buffer_range(buf, cmd->buffer_offset, 1,
					    DMAPROBE_DIR_TO_DEVICE, &phys);
		dmaprobe_buffer_put(buf);
		if (ret)
			return ret;
	}

	iova = kzalloc_obj(*iova, GFP_KERNEL_ACCOUNT);
	if (!iova)
		return -ENOMEM;
	mutex_init(&iova->lock);
	iova->links = RB_ROOT;
	ret = dmaprobe_object_reserve(s, &iova->obj, &iova_type);
	if (ret)
		goto err_free;

	if (!dma_iova_try_alloc(dmaprobe_dma_dev(s), &iova->state, phys,
				cmd->length)) {
		ret = -ENOSPC;
		goto err_unreserve;
	}

	cmd->id = iova->obj.id;
	cmd->addr = iova->state.addr;
	dmaprobe_object_publish(ucmd, &iova->obj);
	return 0;

err_unreserve:
	dmaprobe_object_unreserve(&iova->obj);
err_free:
	mutex_destroy(&iova->lock);
	kfree(iova);
	return ret;
}

int dmaprobe_op_iova_free(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_iova_free *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;

	if (cmd->__reserved)
		return -EINVAL;

	struct dmaprobe_iova *iova __free(iova_unlock) = iova_lock(ucmd, cmd->id);
	if (IS_ERR(iova))
		return PTR_ERR(iova);
	if (iova->nr_links)
		return -EBUSY;

	dma_iova_free(dmaprobe_dma_dev(s), &iova->state);
	iova_bury(iova);
	return 0;
}

/* The rules of dma_iova_link() that do not depend on the other links. */
static int check_link(struct dmaprobe_iova *iova, phys_addr_t phys, u64 offset,
		      u64 length, u64 granule_mask)
{
	u64 addr, end;

	if (check_add_overflow(offset, length, &end) ||
	    end > dma_iova_size(&iova->state))
		return -EINVAL;
	addr = iova->state.addr + offset;
	if (!offset)
		return (phys ^ addr) & granule_mask ? -EINVAL : 0;
	return (phys | addr) & granule_mask ? -EINVAL : 0;
}

/* Put a link into the record, if its neighbours allow it. */
static int link_insert(struct dmaprobe_iova *iova, struct link *link,
		       u64 granule_mask)
{
	struct link *prev, *next;

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

#define LINK_ATTRS	(DMAPROBE_MAP_ATTRS | DMAPROBE_ATTR_MMIO)

/*
 * Find what is to be linked: part of a BAR, which needs nobody to hold it (NULL), or
 * a range of a buffer, which is held.
 */
static struct dmaprobe_buffer *link_source(const struct dmaprobe_ucmd *ucmd,
					   phys_addr_t *phys)
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
		ret = dmaprobe_buffer_range(buf, cmd->buffer_offset,
					    cmd->length, cmd->dir, phys);
	}
	if (ret) {
		dmaprobe_buffer_put(buf);
		return ERR_PTR(ret);
	}
	return buf;
}

int dmaprobe_op_iova_link(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_iova_link *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	unsigned long attrs;
	phys_addr_t phys;
	u64 mask;
	int ret;

	ret = dmaprobe_map_attrs(s, cmd->attrs, LINK_ATTRS, &attrs);
	if (ret)
		return ret;
	if (cmd->attrs & DMAPROBE_ATTR_MMIO ? cmd->buffer_id : cmd->bar)
		return -EINVAL;
	if (!dmaprobe_valid_dir(cmd->dir))
		return -EINVAL;

	struct dmaprobe_iova *iova __free(iova_unlock) = iova_lock(ucmd, cmd->id);
	if (IS_ERR(iova))
		return PTR_ERR(iova);
	struct dmaprobe_buffer *buf __free(dmaprobe_buffer_put) =
		link_source(ucmd, &phys);
	if (IS_ERR(buf))
		return PTR_ERR(buf);
	mask = dmaprobe_granule(s->dd) - 1;
	ret = check_link(iova, phys, cmd->offset, cmd->length, mask);
	if (ret)
		return ret;
	/* The kernel WARNs about it, and answers the same. */
	if ((cmd->attrs & DMAPROBE_ATTR_REQUIRE_COHERENT) &&
	    (iova->state.__size & DMA_IOVA_USE_SWIOTLB))
		return -EOPNOTSUPP;

	struct link *link __free(kfree) = kzalloc_obj(*link, GFP_KERNEL_ACCOUNT);
	if (!link)
		return -ENOMEM;
	link->offset = cmd->offset;
	link->length = cmd->length;
	link->dir = cmd->dir;
	link->attrs = attrs;
	link->first = (iova->state.addr + cmd->offset) & ~mask;
	link->last = (iova->state.addr + cmd->offset + cmd->length - 1) | mask;
	ret = link_insert(iova, link, mask);
	if (ret)
		return ret;

	ret = dma_iova_link(dmaprobe_dma_dev(s), &iova->state, phys,
			    cmd->offset, cmd->length, cmd->dir, attrs);
	if (ret) {
		rb_erase(&link->node, &iova->links);
		return ret;
	}
	link->buf = no_free_ptr(buf);
	iova->nr_links++;
	iova->linked += link->length;
	link = NULL;
	return 0;
}

int dmaprobe_op_iova_sync(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_iova_sync *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	int ret;

	if (cmd->__reserved)
		return -EINVAL;

	struct dmaprobe_iova *iova __free(iova_unlock) = iova_lock(ucmd, cmd->id);
	if (IS_ERR(iova))
		return PTR_ERR(iova);
	ret = check_linked(iova, cmd->offset, cmd->length, NULL);
	if (ret)
		return ret;
	return dma_iova_sync(dmaprobe_dma_dev(s), &iova->state, cmd->offset,
			     cmd->length);
}

/* The attributes that the links to undo must have. */
static int like_attrs(struct link *like, u64 attrs)
{
	unsigned long out;
	int ret = dmaprobe_attrs(attrs, LINK_ATTRS, &out);

	like->attrs = out;
	return ret;
}

int dmaprobe_op_iova_unlink(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_iova_unlink *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	struct link like = { .dir = cmd->dir };
	struct link *link, *next;
	int ret;

	ret = like_attrs(&like, cmd->attrs);
	if (ret)
		return ret;
	if (!dmaprobe_valid_dir(cmd->dir))
		return -EINVAL;

	struct dmaprobe_iova *iova __free(iova_unlock) = iova_lock(ucmd, cmd->id);
	if (IS_ERR(iova))
		return PTR_ERR(iova);
	ret = check_linked(iova, cmd->offset, cmd->length, &like);
	if (ret)
		return ret;

	dma_iova_unlink(dmaprobe_dma_dev(s), &iova->state, cmd->offset,
			cmd->length, like.dir, like.attrs);
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
	struct link like = { .dir = cmd->dir };
	struct link *link;
	int ret;

	ret = like_attrs(&like, cmd->attrs);
	if (ret)
		return ret;
	if (!dmaprobe_valid_dir(cmd->dir))
		return -EINVAL;

	struct dmaprobe_iova *iova __free(iova_unlock) = iova_lock(ucmd, cmd->id);
	if (IS_ERR(iova))
		return PTR_ERR(iova);
	if (cmd->mapped_len) {
		ret = check_linked(iova, 0, cmd->mapped_len, &like);
		if (ret)
			return ret;
	}
	link = to_link(rb_last(&iova->links));
	if (link && link_end(link) > cmd->mapped_len)
		return -EBUSY;

	dma_iova_destroy(dmaprobe_dma_dev(s), &iova->state, cmd->mapped_len,
			 like.dir, like.attrs);
	while ((link = to_link(rb_first(&iova->links))))
		link_drop(iova, link);
	iova_bury(iova);
	return 0;
}

int dmaprobe_op_iova_state(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_iova_state *cmd = ucmd->cmd;

	struct dmaprobe_iova *iova __free(iova_unlock) =
		iova_lock(ucmd, cmd->id);
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
