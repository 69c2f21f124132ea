// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pools of small blocks of coherent memory, and the blocks.
 *
 * A pool never gives memory back before it is destroyed, so it is charged for the most
 * that it ever needed.
 */
#include <linux/capability.h>
#include <linux/dmapool.h>
#include <linux/log2.h>
#include <linux/slab.h>

#include "compat.h"
#include "private.h"

#define POOL_MAX	SZ_1M

/* What a free block holds at least: mm/dmapool.c, struct dma_block. */
#define POOL_MIN_BLOCK	16

struct dmaprobe_pool {
	struct dmaprobe_object obj;
	struct dma_pool *pool;
	u32 block_size;
	u32 chunk_pages;	/* that the pool allocates at a time */
	u32 chunk_blocks;	/* which it makes out of them */

	struct mutex lock;	/* all below; the calls that may allocate */
	unsigned long nr_blocks;
	unsigned long nr_chunks;
};

struct dmaprobe_block {
	struct dmaprobe_object obj;
	struct dmaprobe_pool *pool;
	void *cpu;
	dma_addr_t addr;
};

static void pool_release(struct dmaprobe_object *obj)
{
	struct dmaprobe_pool *p = container_of(obj, struct dmaprobe_pool, obj);

	dma_pool_destroy(p->pool);
	dmaprobe_uncharge(obj->session, p->nr_chunks * p->chunk_pages);
	kfree_rcu(p, obj.rcu);
}

static const struct dmaprobe_object_type pool_type = {
	.release = pool_release,
	.end_cmd = DMAPROBE_DESTROY,
	.has_address = true,
	.stats = offsetof(struct dmaprobe_get_stats, nr_pools),
};

static void block_release(struct dmaprobe_object *obj)
{
	struct dmaprobe_block *b = container_of(obj, struct dmaprobe_block, obj);
	struct dmaprobe_pool *p = b->pool;

	scoped_guard(mutex, &p->lock) {
		dma_pool_free(p->pool, b->cpu, b->addr);
		p->nr_blocks--;
	}
	dmaprobe_object_put(&p->obj);
	kfree_rcu(b, obj.rcu);
}

static int block_copy(struct dmaprobe_object *obj, const struct dmaprobe_copy *cmd,
		      const struct dmaprobe_copy_part *part)
{
	struct dmaprobe_block *b = container_of(obj, struct dmaprobe_block, obj);

	if (!dmaprobe_copy_fits(cmd, b->pool->block_size))
		return -EINVAL;
	dmaprobe_copy_part(cmd, part, b->cpu + part->offset);
	return 0;
}

static int block_segments(struct dmaprobe_object *obj, struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_block *b = container_of(obj, struct dmaprobe_block, obj);

	return dmaprobe_reply_segment(ucmd, b->addr, b->pool->block_size);
}

static const struct dmaprobe_object_type block_type = {
	.release = block_release,
	.end_cmd = DMAPROBE_DESTROY,
	.has_address = true,
	.stats = offsetof(struct dmaprobe_get_stats, nr_blocks),
	.copy = block_copy,
	.segments = block_segments,
};

int dmaprobe_op_pool_create(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_pool_create *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	u64 align = cmd->align ?: 1, size, boundary;
	struct dmaprobe_pool *p;
	int ret;

	if (!cmd->block_size || cmd->block_size > POOL_MAX ||
	    !is_power_of_2(align) || align > POOL_MAX)
		return -EINVAL;
	size = ALIGN(max_t(u64, cmd->block_size, POOL_MIN_BLOCK), align);
	if (cmd->boundary && (!is_power_of_2(cmd->boundary) ||
			      cmd->boundary < size || cmd->boundary > POOL_MAX))
		return -EINVAL;
	/*
	 * The kernel links free blocks by pointers in the blocks themselves, where
	 * the device can write.
	 */
	if (!capable(CAP_SYS_RAWIO))
		return -EPERM;

	p = kzalloc_obj(*p, DMAPROBE_GFP);
	if (!p)
		return -ENOMEM;
	mutex_init(&p->lock);
	p->block_size = cmd->block_size;
	if (size > PAGE_SIZE) {
		p->chunk_pages = dmaprobe_translates(s->dd) ? PFN_UP(size) :
				 1U << get_order(size);
		p->chunk_blocks = 1;
	} else {
		boundary = min_t(u64, cmd->boundary ?: PAGE_SIZE, PAGE_SIZE);
		p->chunk_pages = 1;
		p->chunk_blocks = PAGE_SIZE / boundary * (boundary / size);
	}

	ret = dmaprobe_object_add(s, &p->obj, &pool_type);
	if (ret)
		goto err_free;
	p->pool = dma_pool_create("dmaprobe", dmaprobe_dma_dev(s),
				  cmd->block_size, align, cmd->boundary);
	if (!p->pool) {
		ret = -ENOMEM;
		goto err_cancel;
	}

	cmd->id = p->obj.id;
	dmaprobe_object_made(ucmd, &p->obj);
	return 0;

err_cancel:
	dmaprobe_object_cancel(&p->obj);
err_free:
	kfree_rcu(p, obj.rcu);
	return ret;
}

/* Take a block, and charge the session if the pool must grow for it. */
static int take_block(struct dmaprobe_session *s, struct dmaprobe_block *b)
{
	struct dmaprobe_pool *p = b->pool;
	bool grow;
	int ret;

	guard(mutex)(&p->lock);
	grow = p->nr_blocks == p->nr_chunks * p->chunk_blocks;
	if (grow) {
		ret = dmaprobe_charge(s, p->chunk_pages);
		if (ret)
			return ret;
	}
	b->cpu = dma_pool_zalloc(p->pool, DMAPROBE_ALLOC_GFP, &b->addr);
	if (!b->cpu) {
		if (grow)
			dmaprobe_uncharge(s, p->chunk_pages);
		return -ENOMEM;
	}
	p->nr_chunks += grow;
	p->nr_blocks++;
	return 0;
}

int dmaprobe_op_pool_alloc(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_pool_alloc *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	struct dmaprobe_object *pool;
	struct dmaprobe_block *b;
	int ret;

	pool = dmaprobe_object_get(ucmd, cmd->pool_id, &pool_type);
	if (IS_ERR(pool))
		return PTR_ERR(pool);
	b = kzalloc_obj(*b, DMAPROBE_GFP);
	if (!b) {
		ret = -ENOMEM;
		goto err_pool;
	}
	b->pool = container_of(pool, struct dmaprobe_pool, obj);
	ret = dmaprobe_object_add(s, &b->obj, &block_type);
	if (ret)
		goto err_free;
	ret = take_block(s, b);
	if (ret)
		goto err_cancel;

	cmd->id = b->obj.id;
	cmd->dma_addr = b->addr;
	dmaprobe_object_made(ucmd, &b->obj);
	ucmd->iova = b->addr;
	ucmd->length = b->pool->block_size;
	return 0;

err_cancel:
	dmaprobe_object_cancel(&b->obj);
err_free:
	kfree_rcu(b, obj.rcu);
err_pool:
	dmaprobe_object_put(pool);
	return ret;
}
